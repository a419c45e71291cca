//! What the helper process does: it reads, and says line by line what it has read.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::Question;
use crate::device::scan::threads::answer_all;
use crate::device::sysfs::{Root, node_of};
use crate::running::control::read_on_device;
use crate::running::findings::OnDevice;
use crate::running::part::Part;
use crate::running::recorded::{File, Listing};

/// What the helper process says, each as a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// This part is being read.
    Begun(Part),
    /// All names are told, and each part has begun.
    Listed,
    /// A line of a recorded tree.
    Line(String),
    /// The set that a superblock names, and its state.
    Superblock(String, OnDevice),
    /// This part was read.
    Done(Part),
    /// Everything was read.
    End,
    /// The kernel does not list its devices.
    Failed(String),
}

/// Reads what is asked below `root`, and tells it message by message.
pub(super) fn look(root: &Root, question: Question, messages: &Sender<Message>) {
    // Nobody listens any more where the time is up.
    let tell = |message| messages.send(message).is_ok();
    let listing = match Listing::new(root, question.files) {
        Ok(listing) => listing,
        Err(error) => {
            tell(Message::Failed(error.to_string()));
            return;
        }
    };
    let mut parts: BTreeMap<Part, Vec<File>> = BTreeMap::new();
    for line in listing.lines {
        tell(Message::Line(line));
    }
    for file in listing.files {
        match &file.part {
            None => {
                tell(Message::Line(file.line()));
            }
            Some(part) => {
                // It is there, whether or not it can be read.
                tell(Message::Line(file.unread()));
                parts.entry(part.clone()).or_default().push(file);
            }
        }
    }
    if question.superblocks {
        let of_backing = |(part, files): (&Part, &Vec<File>)| match part {
            Part::Device(name) if files.iter().any(File::is_state) => {
                Some((Part::Superblock(name.clone()), Vec::new()))
            }
            _ => None,
        };
        let superblocks: Vec<_> = parts.iter().filter_map(of_backing).collect();
        parts.extend(superblocks);
    }
    for (part, files) in &mut parts {
        // What takes no lock comes first, so that it is known in any case.
        files.sort_by_key(|file| !file.is_statistic());
        tell(Message::Begun(part.clone()));
    }
    tell(Message::Listed);
    let to = messages.clone();
    let read = move |(part, files): &(Part, Vec<File>)| read_part(part, files, &to);
    let answers = answer_all(parts.into_iter().collect(), Arc::new(read));
    // It ends with the last part.
    for (_, ()) in answers {}
    tell(Message::End);
}

fn read_part(part: &Part, files: &[File], messages: &Sender<Message>) {
    let tell = |message| messages.send(message).is_ok();
    for file in files {
        if !tell(Message::Line(file.line())) {
            return;
        }
    }
    if let Part::Superblock(name) = part {
        let found = read_on_device(&node_of(name));
        if let Some(found) = found {
            tell(Message::Superblock(name.clone(), found));
        }
    }
    tell(Message::Done(part.clone()));
}

/// What the helper process does: for each byte of `input` it looks once at what is asked below `root`
/// and says it on `output`, until `input` ends.
///
/// # Errors
/// When `input` cannot be read, or no thread can be started.
pub fn serve(
    root: &Root,
    question: Question,
    mut input: impl Read,
    output: impl Write + Send + 'static,
) -> io::Result<()> {
    let (ask, asked) = mpsc::channel();
    let (sender, messages) = mpsc::channel();
    let root = root.clone();
    // In threads, so that the end of the input ends the process whatever a look waits for.
    thread::Builder::new().spawn(move || {
        for () in asked {
            look(&root, question, &sender);
        }
    })?;
    thread::Builder::new().spawn(move || write_all(&messages, output))?;
    let mut byte = [0];
    while input.read(&mut byte)? > 0 {
        if ask.send(()).is_err() {
            break;
        }
    }
    Ok(())
}

/// Writes messages as they come: many at once where many are there, and none of them late.
fn write_all(messages: &Receiver<Message>, output: impl Write) -> io::Result<()> {
    let mut output = io::BufWriter::new(output);
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => {
                output.flush()?;
                let Ok(message) = messages.recv() else { return Ok(()) };
                message
            }
            Err(TryRecvError::Disconnected) => return output.flush(),
        };
        serde_json::to_writer(&mut output, &message)?;
        output.write_all(b"\n")?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Outstanding;
    use super::*;
    use crate::running::recorded;

    #[test]
    fn the_helper_says_what_a_record_has() {
        let fixture =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running/dirty-6.12.sysfs");
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(fixture).unwrap();
        let root = recorded::unpack(&text, folder.path()).unwrap();
        let (sender, messages) = mpsc::channel();
        look(&root, Question::default(), &sender);
        drop(sender);
        let mut said = Vec::new();
        write_all(&messages, &mut said).unwrap();
        let mut all = Outstanding::new();
        let mut ended = false;
        for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            ended = all.take(serde_json::from_slice(line).unwrap()).unwrap();
        }
        assert!(ended && all.silent.is_empty());
        // What only can be written was not laid out.
        let readable: Vec<&str> = text.lines().filter(|line| !line.ends_with("\t!")).collect();
        let said = recorded::text(&all.snapshot().root);
        assert_eq!(said.lines().collect::<Vec<_>>(), readable);
    }
}
