//! Outputs that go on: what the journal promises, at whatever operation a run ends, and what is made of a damaged one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::output::plan;
use crate::common::{entries, snapshot};
use quant_checkpoint::{
    Checkpoint, CheckpointError as E, Dtype, ErrorClass, Finished, MARKER, OutputFolder, OutputOptions,
    ShardPlan, Storage, Unfinished,
};
use quant_testkit::CutDisk;

/// Tensors of a small job, two to a shard.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const LENGTH: usize = 300;

fn shards() -> ShardPlan {
    let tensors: Vec<_> = NAMES.iter().map(|name| (*name, Dtype::U8, &[LENGTH][..])).collect();
    plan(&tensors, 2 * LENGTH as u64)
}

fn content(tensor: usize) -> Vec<u8> {
    (0..LENGTH).map(|i| (i * 7 + tensor) as u8).collect()
}

fn options(unfinished: Unfinished) -> OutputOptions {
    let identity = vec![("recipe".to_owned(), "one".to_owned()), ("model".to_owned(), "two".to_owned())];
    OutputOptions { unfinished, identity, ..OutputOptions::default() }
}

fn on(storage: impl Storage + 'static, unfinished: Unfinished) -> OutputOptions {
    OutputOptions { storage: Arc::new(storage), ..options(unfinished) }
}

/// A job in steps of one tensor. Each step records its number and a bulk; at the third the journal begins anew. Stops before
/// step `stop`.
fn job(dir: &Path, options: &OutputOptions, stop: usize) -> Result<Option<Finished>, E> {
    let mut out = OutputFolder::create(dir, options)?;
    let mut done = 0;
    if let Some(kept) = out.kept() {
        let frames: Vec<Vec<u8>> = (0..kept.frames()).map(|i| kept.read(i)).collect::<Result<_, _>>()?;
        assert!(frames.len().is_multiple_of(2) && !frames.is_empty());
        done = usize::from(frames[frames.len() - 2][0]);
        // Bulk stands behind its number.
        assert!(frames.chunks(2).all(|pair| pair[1] == vec![pair[0][0]; 1000]));
    }
    let mut begun = done > 0;
    out.begin_weights(shards())?;
    for (step, name) in NAMES.iter().enumerate().skip(done) {
        if step == stop {
            out.settle()?;
            return Ok(None);
        }
        if !begun || step == 2 {
            out.begin_journal()?;
            begun = true;
        }
        out.tensor(name, Dtype::U8, &[LENGTH], &content(step))?;
        let number = step as u8 + 1;
        out.record(vec![number])?;
        out.record(vec![number; 1000])?;
        out.commit()?;
    }
    out.end_weights()?;
    out.write_file("config.json", b"{}")?;
    out.write_file("deep/more.json", b"[]")?;
    out.write_file("manifest.json", br#"{"tool": "ptq 0.0.0", "output": {}}"#)?;
    out.finish().map(Some)
}

/// What the job gives when nothing happens.
fn reference() -> BTreeMap<PathBuf, Vec<u8>> {
    let root = tempfile::tempdir().unwrap();
    job(&root.path().join("out"), &options(Unfinished::Refuse), usize::MAX).unwrap();
    let files = snapshot(&root.path().join("out")).into_iter();
    files.map(|(name, bytes)| (PathBuf::from(name), bytes)).collect()
}

fn output(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    snapshot(dir).into_iter().map(|(name, bytes)| (PathBuf::from(name), bytes)).collect()
}

/// A folder in which the job stopped before a step.
fn stopped(stop: usize) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    assert!(job(&dir, &options(Unfinished::Refuse), stop).unwrap().is_none());
    (root, dir)
}

#[test]
fn a_job_that_stopped_goes_on() {
    let reference = reference();
    for stop in 1..=4 {
        let (root, dir) = stopped(stop);
        assert_eq!(entries(root.path()), ["out.partial"]);
        assert_eq!(fs::read_dir(root.path().join("out.partial/JOURNAL")).unwrap().count(), 1);
        assert_error!(Checkpoint::open(root.path().join("out.partial")), E::PartialOutput { .. });
        // A side file of the run before is written again.
        fs::write(root.path().join("out.partial/config.json"), "half").unwrap();
        let finished = job(&dir, &options(Unfinished::Resume), usize::MAX).unwrap().unwrap();
        assert_eq!(finished.hashes.len(), NAMES.len(), "those of the run before as well");
        assert_eq!(
            (output(&dir), entries(root.path())),
            (reference.clone(), vec!["out".to_owned()]),
            "{stop}"
        );
    }
}

#[test]
fn nothing_to_go_on_with_is_a_beginning() {
    let (root, dir) = stopped(0);
    assert!(entries(root.path()).is_empty(), "without a record nothing is kept");
    let begun = OutputFolder::create(&dir, &options(Unfinished::Resume)).unwrap();
    assert!(begun.kept().is_none() && begun.resumable().folder().is_none());
    drop(begun);
    // The folder of a run that was killed before its first record.
    let partial = root.path().join("out.partial");
    fs::create_dir_all(partial.join("JOURNAL")).unwrap();
    fs::write(partial.join(MARKER), "").unwrap();
    fs::write(partial.join("JOURNAL/00000000.journal"), "ptq-jrnl").unwrap();
    job(&dir, &options(Unfinished::Refuse), usize::MAX).unwrap();
    assert_eq!(output(&dir), reference());
}

#[test]
fn work_is_not_thrown_away_unasked() {
    let (root, dir) = stopped(2);
    let before = snapshot(root.path());
    let check = |unfinished| OutputFolder::check(&dir, &options(unfinished));
    for refused in [check(Unfinished::Refuse), job(&dir, &options(Unfinished::Refuse), 0).map(drop)] {
        let error = assert_error!(refused, E::Unfinished { .. });
        assert_eq!(error.class(), ErrorClass::Usage);
        let said = error.to_string();
        assert!(
            said.contains("--resume") && said.contains("--restart") && said.contains("out.partial"),
            "{said}"
        );
    }
    check(Unfinished::Resume).unwrap();
    check(Unfinished::Discard).unwrap();
    assert_eq!(snapshot(root.path()), before);
    assert!(job(&dir, &options(Unfinished::Discard), 0).unwrap().is_none());
    assert!(entries(root.path()).is_empty());
}

#[test]
fn another_job_is_refused_by_its_fields() {
    let (root, dir) = stopped(3);
    let before = snapshot(root.path());
    let mut other = options(Unfinished::Resume);
    other.identity[0].1 = "another".into();
    other.identity.push(("data".into(), "new".into()));
    for refused in [OutputFolder::check(&dir, &other), job(&dir, &other, 0).map(drop)] {
        let error = assert_error!(refused, E::OtherJob { .. });
        assert_eq!(error.class(), ErrorClass::Usage);
        let said = error.to_string();
        assert!(said.contains("recipe was one and is another; data was nothing and is new"), "{said}");
        assert!(!said.contains("model") && said.contains("out.partial"), "{said}");
    }
    assert_eq!(snapshot(root.path()), before);
}

#[test]
fn one_run_at_a_time() {
    let (_root, dir) = stopped(1);
    let living = OutputFolder::create(&dir, &options(Unfinished::Resume)).unwrap();
    for unfinished in [Unfinished::Refuse, Unfinished::Resume, Unfinished::Discard] {
        assert_error!(job(&dir, &options(unfinished), 0), E::OutputBusy { .. });
    }
    drop(living);
    job(&dir, &options(Unfinished::Resume), usize::MAX).unwrap();
}

/// What the options ask for is what is still to be written.
#[test]
fn the_space_that_is_taken_is_not_needed_again() {
    let (root, dir) = stopped(3);
    #[derive(Debug)]
    struct Free(u64);
    impl Storage for Free {
        fn create(&self, path: &Path) -> std::io::Result<Box<dyn quant_checkpoint::StorageFile>> {
            quant_checkpoint::Disk.create(path)
        }
        fn free_bytes(&self, _: &Path) -> Option<u64> {
            Some(self.0)
        }
    }
    let taken: u64 = snapshot(root.path()).iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let space = |space, free| OutputOptions { space, ..on(Free(free), Unfinished::Resume) };
    OutputFolder::check(&dir, &space(10_000 + taken, 10_000)).unwrap();
    let error = assert_error!(OutputFolder::check(&dir, &space(10_000_000, 10_000)), E::NoSpace { .. });
    assert_eq!(error.class(), ErrorClass::Resources);
}

/// Every damage to the journal is found: the run goes on from the last whole record, begins anew, or is refused.
#[test]
fn damaged_journals() {
    let reference = reference();
    let (root, dir) = stopped(4);
    let partial = root.path().join("out.partial");
    let journal = partial.join("JOURNAL").join(&entries(&partial.join("JOURNAL"))[0]);
    let whole = fs::read(&journal).unwrap();
    let before = snapshot(&partial);
    let put_back = |bytes: &[u8]| {
        let _ = fs::remove_dir_all(&dir);
        let _ = fs::remove_dir_all(&partial);
        for (name, content) in &before {
            let path = partial.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fs::write(&journal, bytes).unwrap();
    };
    let finishes = |what: String| match job(&dir, &options(Unfinished::Resume), usize::MAX) {
        Ok(_) => assert_eq!(output(&dir), reference, "{what}"),
        Err(error) => assert!(matches!(error, E::DamagedJournal { .. }), "{what}: {error}"),
    };
    for cut in (0..whole.len()).step_by(37).chain([whole.len() - 1]) {
        put_back(&whole[..cut]);
        finishes(format!("cut at {cut}"));
    }
    for at in (0..whole.len()).step_by(41) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        put_back(&bytes);
        finishes(format!("changed at {at}"));
    }
    // Whole frames of lengths that lie, and of contents that make no sense.
    for (kind, length, content) in [
        (2_u32, u64::MAX, &[][..]),
        (2, 1 << 40, &[1; 50]),
        (1, 4, &[255; 4]),
        (3, 9, &[255; 9]),
        (7, 0, &[]),
    ] {
        let mut check = crc32fast::Hasher::new();
        check.update(&kind.to_le_bytes());
        check.update(&length.to_le_bytes());
        check.update(content);
        let frame =
            [&kind.to_le_bytes()[..], &check.finalize().to_le_bytes(), &length.to_le_bytes(), content]
                .concat();
        put_back(&[&whole, &frame[..]].concat());
        finishes(format!("kind {kind}, length {length}"));
    }
}

#[test]
fn weights_that_are_not_what_the_journal_says_are_refused() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("expected SHA-256", |shard| {
            let mut bytes = fs::read(shard).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(shard, bytes).unwrap();
        }),
        ("expected SHA-256", |shard| fs::write(shard, "").unwrap()),
        ("expected SHA-256", |shard| fs::remove_file(shard).unwrap()),
        ("expected a file of at most", |shard| fs::write(shard, vec![0; 10_000]).unwrap()),
    ];
    for (word, damage) in damage {
        let (root, dir) = stopped(4);
        damage(&root.path().join("out.partial/model-00001-of-00003.safetensors"));
        let error =
            assert_error!(job(&dir, &options(Unfinished::Resume), usize::MAX), E::DamagedJournal { .. });
        assert_eq!(error.class(), ErrorClass::BadCheckpoint);
        assert!(error.to_string().contains(word) && error.to_string().contains("--restart"), "{error}");
        job(&dir, &options(Unfinished::Discard), usize::MAX).unwrap();
        assert_eq!(output(&dir), reference());
    }
}

/// Ends the job at each of its operations, as a killed process and as a machine without power; then it goes on and gives
/// what it would have given. At no moment does a reader see anything but nothing, the old output or the new one.
#[test]
fn whatever_the_operation_at_which_a_run_ends() {
    let reference = reference();
    let old = b"old".to_vec();
    for replaces in [false, true] {
        for cut in 0.. {
            let work = tempfile::tempdir().unwrap();
            let first = work.path().join("disk/out");
            if replaces {
                fs::create_dir_all(&first).unwrap();
                fs::write(first.join("letter.txt"), &old).unwrap();
            }
            let disk = CutDisk::new(work.path(), cut);
            let forced = |options| OutputOptions { force: replaces, ..options };
            let ended = job(&first, &forced(on(disk.clone(), Unfinished::Refuse)), usize::MAX);
            assert_eq!(ended.is_err(), disk.is_cut(), "{cut}: {ended:?}");
            let power = work.path().join("power");
            fs::create_dir(&power).unwrap();
            disk.after_power_cut(&power.join("disk"));
            for place in [work.path(), &power] {
                // The same disk without an end, which needs no time to sync.
                let (disk, dir) = (CutDisk::new(place, usize::MAX), &place.join("disk/out"));
                let resumed = || forced(on(disk.clone(), Unfinished::Resume));
                let readable = |dir: &Path| dir.exists() && !dir.join(MARKER).exists();
                let seen = readable(dir).then(|| output(dir));
                let letter = BTreeMap::from([(PathBuf::from("letter.txt"), old.clone())]);
                let right =
                    seen.as_ref().is_none_or(|seen| *seen == reference || (replaces && *seen == letter));
                assert!(
                    right,
                    "{cut}: {:?} in {}",
                    seen.map(|s| s.into_keys().collect::<Vec<_>>()),
                    dir.display()
                );
                OutputFolder::recover(dir, &resumed()).unwrap();
                if !readable(dir) || output(dir) != reference {
                    job(dir, &resumed(), usize::MAX).unwrap_or_else(|e| panic!("{cut}: {e}"));
                }
                assert_eq!(output(dir), reference, "{cut}");
                let around = entries(dir.parent().unwrap());
                let kept = if replaces { vec!["out", "out.old-1"] } else { vec!["out"] };
                assert_eq!(around, kept, "{cut}: what was replaced is kept, once");
            }
            if ended.is_ok() {
                assert!(cut > 60, "the job has so many operations: {cut}");
                break;
            }
        }
    }
}
