//! The server's side of the NBD protocol, read-only: fixed newstyle handshake, one export without a name,
//! simple replies. After <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use std::io::{self, Read, Write};

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags: fixed newstyle, no padding after the old kind of start.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const REPLY_INVALID: u32 = 0x8000_0003;
const REPLY_UNKNOWN: u32 = 0x8000_0006;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags: there are flags, and nothing can be written.
const TRANSMISSION_FLAGS: u16 = 1 | 2;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_TRIM: u16 = 4;
const COMMAND_WRITE_ZEROES: u16 = 6;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Most bytes of a read: what clients may ask for without asking whether they may.
const READ_BYTES_MAX: u32 = 32 << 20;

/// Longest option that is looked at.
const OPTION_BYTES_MAX: u32 = 64 << 10;

/// What is served.
pub(crate) trait Export {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from the byte `offset`; both are within the size. `false` where a part of it cannot
    /// be read.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> bool;
}

/// Serves one client until it goes away. An error is one of the connection, or a client that does not
/// keep to the protocol.
pub(crate) fn serve(stream: &mut (impl Read + Write), export: &mut dyn Export) -> io::Result<()> {
    if handshake(stream, export.size_bytes())? { transmit(stream, export) } else { Ok(()) }
}

/// Whether the client wants to go on to reading.
fn handshake(stream: &mut (impl Read + Write), size: u64) -> io::Result<bool> {
    let mut hello = Vec::new();
    hello.extend(INIT_MAGIC.to_be_bytes());
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let flags = read_u32(stream)?;
    let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    if flags & !known != 0 {
        return Err(protocol("unknown client flags"));
    }
    let no_zeroes = flags & u32::from(NO_ZEROES) != 0;
    loop {
        if read_u64(stream)? != OPTION_MAGIC {
            return Err(protocol("no option where one was due"));
        }
        let (option, len) = (read_u32(stream)?, read_u32(stream)?);
        if len > OPTION_BYTES_MAX {
            return Err(protocol("an option that is too long"));
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        stream.read_exact(&mut data)?;
        match option {
            OPTION_EXPORT_NAME if data.is_empty() => {
                let mut reply = Vec::new();
                reply.extend(size.to_be_bytes());
                reply.extend(TRANSMISSION_FLAGS.to_be_bytes());
                if !no_zeroes {
                    reply.extend([0; 124]);
                }
                stream.write_all(&reply)?;
                return Ok(true);
            }
            // There is no way to answer but to hang up.
            OPTION_EXPORT_NAME => return Ok(false),
            OPTION_ABORT => {
                reply(stream, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            OPTION_LIST if data.is_empty() => {
                reply(stream, option, REPLY_SERVER, &0u32.to_be_bytes())?;
                reply(stream, option, REPLY_ACK, &[])?;
            }
            OPTION_INFO | OPTION_GO => match export_name(&data) {
                Some([]) => {
                    reply(stream, option, REPLY_INFO, &info_export(size))?;
                    reply(stream, option, REPLY_INFO, &info_block_size())?;
                    reply(stream, option, REPLY_ACK, &[])?;
                    if option == OPTION_GO {
                        return Ok(true);
                    }
                }
                Some(_) => reply(stream, option, REPLY_UNKNOWN, b"the export has no name")?,
                None => reply(stream, option, REPLY_INVALID, &[])?,
            },
            OPTION_LIST => reply(stream, option, REPLY_INVALID, &[])?,
            _ => reply(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

/// The name that an option INFO or GO asks for: its length, itself, and the kinds of information wanted.
fn export_name(data: &[u8]) -> Option<&[u8]> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    let (count, kinds) = rest.split_first_chunk::<2>()?;
    (kinds.len() == 2 * usize::from(u16::from_be_bytes(*count))).then_some(name)
}

fn info_export(size: u64) -> Vec<u8> {
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(size.to_be_bytes());
    info.extend(TRANSMISSION_FLAGS.to_be_bytes());
    info
}

fn info_block_size() -> Vec<u8> {
    let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for bytes in [1, 4096, READ_BYTES_MAX] {
        info.extend(bytes.to_be_bytes());
    }
    info
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for field in [option, kind, u32::try_from(data.len()).unwrap_or(0)] {
        reply.extend(field.to_be_bytes());
    }
    reply.extend(data);
    stream.write_all(&reply)
}

fn transmit(stream: &mut (impl Read + Write), export: &mut dyn Export) -> io::Result<()> {
    let size = export.size_bytes();
    loop {
        if read_u32(stream)? != REQUEST_MAGIC {
            return Err(protocol("no request where one was due"));
        }
        let (_flags, command) = (read_u16(stream)?, read_u16(stream)?);
        let (cookie, offset, len) = (read_u64(stream)?, read_u64(stream)?, read_u32(stream)?);
        let within = offset.checked_add(len.into()).is_some_and(|end| end <= size);
        let mut data = Vec::new();
        let error = match command {
            COMMAND_DISCONNECT => return Ok(()),
            COMMAND_READ if !within || len > READ_BYTES_MAX => EINVAL,
            COMMAND_READ => {
                data.resize(usize::try_from(len).unwrap_or(0), 0);
                if export.read(offset, &mut data) { 0 } else { EIO }
            }
            COMMAND_WRITE => {
                io::copy(&mut Read::by_ref(stream).take(len.into()), &mut io::sink())?;
                EPERM
            }
            COMMAND_TRIM | COMMAND_WRITE_ZEROES => EPERM,
            _ => EINVAL,
        };
        let mut head = REPLY_MAGIC.to_be_bytes().to_vec();
        head.extend(error.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        stream.write_all(&head)?;
        if error == 0 {
            stream.write_all(&data)?;
        }
    }
}

fn protocol(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client sent {what}"))
}

fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
