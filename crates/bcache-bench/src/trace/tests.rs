use super::source::from_reader;
use std::fmt::Write as _;
use std::io::Cursor;

use super::*;

fn read(text: &'static [u8]) -> (Format, Vec<Request>, Skipped, Vec<String>) {
    let mut requests = from_reader(text, None, None).unwrap();
    let all = requests.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
    (requests.format(), all, requests.skipped().clone(), requests.devices())
}

const PARTS: fn(&Request) -> (u64, u64, u32, Op) =
    |request| (request.time_ns, request.sector, request.sectors, request.op);

#[test]
fn blkparse_text() {
    let (format, requests, skipped, devices) = read(
        b"  8,16   1        1     0.000000000  4162  A   R 1000 + 8 <- (8,17) 936\n\
          8,16   1        2     0.000000500  4162  Q   R 1000 + 8 [dd]\n\
          8,16   1        3     0.000002000  4162  G   R 1000 + 8 [dd]\n\
          8,16   1        4     0.000003000  4162  P   N [dd]\n\
          8,16   1        5     0.000004000  4162  D   R 1000 + 8 [dd]\n\
          8,32   3       11     0.009507758     0  C   W 223490 + 8 [0]\n\
          8,16   2        6     1.500000000    77  Q WSM 2048 + 16 [kworker/2:1 x]\n\
          8,16   2        7     1.500000001    77  Q FWFS [jbd2/sda1-8]\n\
          8,16   2        8     1.500000002    77  Q FWS 0 + 0 [jbd2]\n\
          8,32   2        9     1.600000000    77  Q  RA 64 + 1 [a]\n\
          8,16   0       10     2.000000000    78  Q  DS 4096 + 2048 [fstrim]\n\
          CPU0 (sda):\n Reads Queued:           1,        4KiB\n",
    );
    assert_eq!(format, Format::Blkparse);
    assert_eq!(
        requests.iter().map(PARTS).collect::<Vec<_>>(),
        [
            (500, 1000, 8, Op::Read),
            (1_500_000_000, 2048, 16, Op::Write),
            (1_600_000_000, 64, 1, Op::Read),
            (2_000_000_000, 4096, 2048, Op::Discard),
        ]
    );
    assert_eq!(requests[1].flags, Flags::SYNC.with(Flags::META));
    assert_eq!((requests[2].flags, requests[2].device), (Flags::READAHEAD, 1));
    assert_eq!(requests[1].process, Some(77));
    assert_eq!(devices, ["8,16", "8,32"]);
    let of = |reason| skipped.of(reason);
    assert_eq!([of(SkipReason::OtherStage), of(SkipReason::Notice)], [4, 1]);
    assert_eq!([of(SkipReason::NoData), of(SkipReason::NotUnderstood)], [2, 2]);
}

#[test]
fn fio_iologs() {
    let (format, requests, skipped, _) = read(
        b"fio version 2 iolog\n/dev/sda add\n/dev/sda open\n/dev/sda write 4096 512\n\
          /dev/sda wait 250\n/dev/sda read 0 1000\n/dev/sda datasync 0 0\n/dev/sda trim 8192 4096\n\
          /dev/sda close\nnonsense\n",
    );
    assert_eq!(format, Format::Iolog);
    assert_eq!(
        requests.iter().map(PARTS).collect::<Vec<_>>(),
        [(0, 8, 1, Op::Write), (251_000, 0, 2, Op::Read), (252_000, 16, 8, Op::Discard)]
    );
    assert_eq!([skipped.of(SkipReason::Notice), skipped.of(SkipReason::NotUnderstood)], [4, 1]);
    let (_, requests, ..) =
        read(b"fio version 3 iolog\n0 /dev/a add\n7 /dev/a read 512 512\n9 /dev/b write 0 4096\n");
    assert_eq!(
        requests.iter().map(PARTS).collect::<Vec<_>>(),
        [(7000, 1, 1, Op::Read), (9000, 0, 8, Op::Write)]
    );
    assert_eq!(requests[1].device, 1);
}

#[test]
fn csv_of_each_layout() {
    let (format, requests, _, devices) =
        read(b"128166372003061629,hm,1,Read,383496192,32768,413\n128166372003061639,hm,0,Write,0,512,9\n");
    assert_eq!((format, devices), (Format::Msr, vec!["hm.1".to_owned(), "hm.0".to_owned()]));
    assert_eq!(PARTS(&requests[0]), (12_816_637_200_306_162_900, 749_016, 64, Op::Read));
    assert_eq!(requests[1].time_ns - requests[0].time_ns, 1000);

    let (format, requests, skipped, _) = read(
        b"Timestamp,Offset,Size,IOType,VolumeID\n1538323200,12910952,128,0,1063\n1538323201,8,8,1,7\n",
    );
    assert_eq!((format, skipped.of(SkipReason::Heading)), (Format::Tencent, 1));
    assert_eq!(PARTS(&requests[1]), (1_538_323_201_000_000_000, 8, 8, Op::Write));

    let (format, requests, ..) = read(b"419,W,8792731648,16384,1577808000000040\n");
    assert_eq!(format, Format::Alibaba);
    assert_eq!(PARTS(&requests[0]), (1_577_808_000_000_040_000, 17_173_304, 32, Op::Write));

    let (format, requests, ..) = read(b"0,303567,3584,w,0.000000\n1,55590,3072,R,0.026214\n");
    assert_eq!(format, Format::Spc);
    assert_eq!(PARTS(&requests[1]), (26_214_000, 55_590, 6, Op::Read));

    let columns = "process,size-bytes,offset-bytes,-,op".parse::<Columns>().unwrap();
    let requests: Vec<_> = from_reader(&b"5,4096,8192,x,D\n"[..], None, Some(columns))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(PARTS(&requests[0]), (0, 16, 8, Op::Discard));
    assert_eq!(requests[0].process, Some(5));
    assert_eq!("op,time-s".parse::<Columns>(), Err(ColumnsError::Missing));
    assert!(matches!("sector".parse::<Columns>(), Err(ColumnsError::Unknown { .. })));
}

#[test]
fn biosnoop_and_perf() {
    let (format, requests, skipped, _) = read(
        b"TIME(s)     COMM           PID    DISK      T SECTOR     BYTES  QUE(ms) LAT(ms)\n\
          0.004572    kworker/u8: x  2543   sda       W 8390480    4096    0.50    1.50\n\
          5.000000    ?              0      nvme0n1   R 64         512     0.00    0.25\n\
          lost 5 events\n",
    );
    assert_eq!(format, Format::Biosnoop);
    assert_eq!(
        requests.iter().map(PARTS).collect::<Vec<_>>(),
        [(2_572_000, 8_390_480, 8, Op::Write), (4_999_750_000, 64, 1, Op::Read)]
    );
    assert_eq!((requests[0].process, skipped.of(SkipReason::NotUnderstood)), (Some(2543), 1));

    let (format, requests, skipped, _) = read(
        b"cpus=4\n  my app-2543  [001]  1234.567890: block_bio_queue:  8,16 RA 1234 + 8 [my app]\n\
          dd  99 [000] 1235.000000: block:block_bio_queue: 8,0 WS 16 + 8 [dd]\n\
          dd-99 [000] 1235.000001: block_rq_issue: 8,0 WS 4096 () 16 + 8 [dd]\n",
    );
    assert_eq!(format, Format::Perf);
    assert_eq!(
        requests.iter().map(PARTS).collect::<Vec<_>>(),
        [(1_234_567_890_000, 1234, 8, Op::Read), (1_235_000_000_000, 16, 8, Op::Write)]
    );
    assert_eq!(requests.iter().map(|it| it.process).collect::<Vec<_>>(), [Some(2543), Some(99)]);
    assert_eq!(skipped.of(SkipReason::OtherStage), 1);

    let (_, requests, ..) =
        read(b" dd-99 [000] 1235.000001: block_rq_issue: 8,0 WS 4096 () 16 + 8 none,0,0 [dd]\n");
    assert_eq!(PARTS(&requests[0]), (1_235_000_001_000, 16, 8, Op::Write));
}

#[test]
fn arc_and_disksim() {
    let (format, requests, ..) = read(b"100 4 0 1\n5 1 0 2\n");
    assert_eq!(format, Format::Arc);
    assert_eq!(PARTS(&requests[1]), (1_000_000, 5, 1, Op::Read));
    let (format, requests, ..) = read(b"1000 0 2048 8 1\n2500 1 16 8 0\n");
    assert_eq!(format, Format::DiskSim);
    assert_eq!(PARTS(&requests[1]), (2500, 16, 8, Op::Write));
}

/// A record of the kernel's, in either byte order.
fn record(big: bool, time: u64, sector: u64, bytes: u32, action: u32, pdu: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    let mut put = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if big {
            bytes.reverse();
        }
        record.extend(bytes);
    };
    put(&0x6561_7407u32.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&time.to_le_bytes());
    put(&sector.to_le_bytes());
    put(&bytes.to_le_bytes());
    put(&action.to_le_bytes());
    put(&42u32.to_le_bytes());
    put(&((8u32 << 20) | 16).to_le_bytes());
    put(&0u32.to_le_bytes());
    put(&0u16.to_le_bytes());
    put(&u16::try_from(pdu.len()).unwrap().to_le_bytes());
    record.extend(pdu);
    record
}

#[test]
fn blktrace_records_of_both_orders_and_merged_files() {
    let queued = |category: u32| (1 << 4 | category) << 16 | 1;
    let stream = |big: bool| {
        let mut stream = record(big, 5, 0, 0, (1 << 10) << 16, b"name\0\0\0\0");
        stream.extend(record(big, 10, 800, 4096, queued(1 << 0), &[]));
        stream.extend(record(big, 11, 800, 4096, (1 << 6) << 16 | 7, &[]));
        stream.extend(record(big, 30, 8, 512, queued(1 << 1 | 1 << 3 | 1 << 12), &[1, 2, 3]));
        stream.extend(record(big, 31, 0, 0, queued(1 << 2), &[]));
        stream.extend(record(big, 40, 64, 1 << 20, queued(1 << 1 | 1 << 13), &[]));
        stream
    };
    let wanted = [(10, 800, 8, Op::Read), (30, 8, 1, Op::Write), (40, 64, 2048, Op::Discard)];
    for big in [false, true] {
        let mut cut = stream(big);
        cut.extend(&record(big, 50, 1, 512, queued(1), &[])[..20]);
        let mut requests = from_reader(Cursor::new(cut), None, None).unwrap();
        let all: Vec<_> = requests.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(all.iter().map(PARTS).collect::<Vec<_>>(), wanted);
        assert_eq!(all[1].flags, Flags::SYNC.with(Flags::META));
        assert_eq!((all[0].process, requests.devices()), (Some(42), vec!["8,16".to_owned()]));
        let skipped = requests.skipped();
        assert_eq!([skipped.of(SkipReason::Notice), skipped.of(SkipReason::OtherStage)], [1, 1]);
        assert_eq!([skipped.of(SkipReason::NoData), skipped.of(SkipReason::CutOff)], [1, 1]);
    }
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> =
        (0..2).map(|cpu| folder.path().join(format!("sdb.blktrace.{cpu}"))).collect();
    std::fs::write(&paths[0], stream(false)).unwrap();
    std::fs::write(&paths[1], record(false, 20, 4, 512, queued(1), &[])).unwrap();
    // As blkparse's -i: without the ending.
    for paths in [paths, vec![folder.path().join("sdb")]] {
        let merged: Vec<_> = open(&Source { paths, ..Source::default() })
            .unwrap()
            .map(|request| request.unwrap().time_ns)
            .collect();
        assert_eq!(merged, [10, 20, 30, 40]);
    }
}

#[test]
fn vscsi_of_both_versions() {
    let mut one = Vec::new();
    let mut two = Vec::new();
    for (command, sector, bytes, us) in
        [(0x28u16, 63u64, 4096u32, 1000u64), (0x2a, 71, 512, 900), (0x35, 0, 0, 2000)]
    {
        one.extend([&7u32.to_le_bytes()[..], &bytes.to_le_bytes(), &1u32.to_le_bytes()].concat());
        one.extend([&command.to_le_bytes()[..], &0x0100u16.to_le_bytes()].concat());
        one.extend([sector.to_le_bytes(), us.to_le_bytes()].concat());
        two.extend([&command.to_le_bytes()[..], &0x0200u16.to_le_bytes()].concat());
        two.extend([&7u32.to_le_bytes()[..], &bytes.to_le_bytes(), &1u32.to_le_bytes()].concat());
        two.extend([sector.to_le_bytes(), us.to_le_bytes(), 5u64.to_le_bytes()].concat());
    }
    for trace in [one, two] {
        let mut requests = from_reader(Cursor::new(trace), None, None).unwrap();
        assert_eq!(requests.format(), Format::Vscsi);
        let all: Vec<_> = requests.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(
            all.iter().map(PARTS).collect::<Vec<_>>(),
            [(1_000_000, 63, 8, Op::Read), (900_000, 71, 1, Op::Write)]
        );
        assert_eq!(requests.skipped().of(SkipReason::OtherCommand), 1);
    }
}

#[test]
fn oracle_general_and_compression() {
    let mut trace = Vec::new();
    for (seconds, object, bytes, next) in
        [(1u32, 9u64, 4096u32, 3i64), (1, 8, 100, -1), (2, 9, 4096, -1)]
    {
        trace.extend(seconds.to_le_bytes());
        trace.extend(object.to_le_bytes());
        trace.extend(bytes.to_le_bytes());
        trace.extend(next.to_le_bytes());
    }
    let gzip = {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&trace).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&trace[..], 1).unwrap();
    for stored in [trace, gzip, zstd] {
        let requests = from_reader(Cursor::new(stored), None, None).unwrap();
        assert_eq!(requests.format(), Format::OracleGeneral);
        let all: Vec<_> = requests.collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0].sector, all[2].sector);
        assert_ne!(all[0].sector, all[1].sector);
        assert_eq!((all[0].sectors, all[1].sectors), (8, 1));
    }
}

#[test]
fn what_is_no_trace_is_said_so() {
    for nonsense in [&b"hello world\n"[..], &[0xff; 100], b"\x7fELF\x02\x01\x01\0\0\0"] {
        let opened = from_reader(nonsense, None, None);
        assert!(matches!(opened, Err(TraceError::UnknownFormat)), "{nonsense:?}");
    }
    assert!(matches!(from_reader(&b""[..], None, None), Err(TraceError::Empty)));
}

#[test]
fn requests_are_sorted_and_sampled_by_regions() {
    let text = "0 0 0 8 1\n".repeat(2) + "5 0 8 8 1\n3 0 4096 8 0\n";
    let requests = from_reader(Cursor::new(text), None, None).unwrap();
    let trace = load(requests, &LoadOptions::default()).unwrap();
    assert_eq!(trace.requests.iter().map(|it| it.sector).collect::<Vec<_>>(), [0, 0, 4096, 8]);
    assert_eq!(trace.summary.footprint_bytes, 3 * 4096);
    assert_eq!(trace.summary.unaligned_4k, 0);

    let mut many = String::new();
    for at in 0..20_000 {
        writeln!(many, "{at} 0 {} 8 1", at * 512).unwrap();
    }
    let sampled = |sample| {
        let requests = from_reader(Cursor::new(many.clone()), None, None).unwrap();
        load(requests, &LoadOptions { sample, ..LoadOptions::default() }).unwrap()
    };
    let quarter = sampled(0.25);
    let kept = quarter.requests.len();
    assert!((4000..6000).contains(&kept), "{kept}");
    assert_eq!(quarter.skipped.of(SkipReason::NotSampled), 20_000 - kept as u64);
    assert!(
        quarter
            .requests
            .chunk_by(|a, b| a.sector / 2048 == b.sector / 2048)
            .all(|it| it.len() % 4 == 0)
    );
}

/// What came before the missing end of a compressed recording is its trace.
#[test]
fn compressed_traces_may_be_cut_off() {
    let lines: Vec<_> = (0..50_000).map(|at| format!("{at} 0 {} 8 1\n", at * 37 % 9973)).collect();
    let text = lines.concat();
    let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    for whole in [zstd, gzip] {
        let half = whole[..whole.len() / 2].to_vec();
        let requests = from_reader(Cursor::new(half), None, None).unwrap();
        let trace = load(requests, &LoadOptions::default()).unwrap();
        assert!((10_000..45_000).contains(&trace.requests.len()), "{}", trace.requests.len());
        assert!(trace.skipped.of(SkipReason::CutOff) > 0);
        let requests = from_reader(Cursor::new(whole), None, None).unwrap();
        let trace = load(requests, &LoadOptions::default()).unwrap();
        assert_eq!((trace.requests.len(), trace.skipped.of(SkipReason::CutOff)), (50_000, 0));
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_line() {
    let (format, requests, skipped, _) =
        read(b"\xef\xbb\xbf128166372003061629,usr,0,Read,7014609920,24576,41286\n");
    assert_eq!((format, requests.len()), (Format::Msr, 1));
    assert_eq!(skipped, Skipped::default());
}

#[test]
fn spc_lines_may_have_more_columns() {
    let (format, requests, ..) = read(b"0, 20941264, 8192, W, 0.551706, 17\n");
    assert_eq!(format, Format::Spc);
    assert_eq!(PARTS(&requests[0]), (551_706_000, 20_941_264, 16, Op::Write));
}

#[test]
fn a_trace_without_requests_says_what_it_has() {
    let completions = "  8,16   1        5     0.000004000  4162  C   R 1000 + 8 [0]\n".repeat(3);
    let requests = from_reader(Cursor::new(completions), None, None).unwrap();
    let error = load(requests, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.ends_with("(3 other stages of a request)"), "{error}");
    let newer = from_reader(&b"fio version 9 iolog\n0 f read 0 512\n"[..], None, None);
    assert!(matches!(newer, Err(TraceError::IologVersion { version: 9 })));
}

#[test]
fn requests_of_one_second_are_spread_over_it() {
    let text = "1538323200,0,8,0,7\n1538323200,8,8,0,7\n1538323202,16,8,1,7\n";
    let requests = from_reader(Cursor::new(text), None, None).unwrap();
    let trace = load(requests, &LoadOptions::default()).unwrap();
    let times: Vec<_> = trace.requests.iter().map(|it| it.time_ns).collect();
    assert_eq!(times, [0, 500_000_000, 2_000_000_000]);
}
