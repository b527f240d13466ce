//! Where outputs may lie, what they replace, and runs that were killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::output::{TinyDisk, force, plan, write_small};
use crate::common::{Folder, entries, snapshot, valid};
use quant_checkpoint::{
    Checkpoint, CheckpointError as E, Dtype, ErrorClass, Leftover, MARKER, OutputFolder, OutputOptions,
};

#[test]
fn existing_output_needs_force() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    write_small(&dir, &OutputOptions::default(), 1).unwrap();
    fs::write(dir.join("old-extra"), "x").unwrap();
    let before = snapshot(root.path());
    let error = assert_error!(write_small(&dir, &OutputOptions::default(), 2), E::OutputExists { .. });
    assert_eq!(error.class(), ErrorClass::Usage);
    assert_eq!(snapshot(root.path()), before);
    let finished = write_small(&dir, &force(), 2).unwrap();
    assert_eq!(finished.leftover, None);
    assert_eq!(entries(root.path()), ["out"]);
    assert_eq!(entries(&dir), ["config.json", "manifest.json", "model.safetensors"]);
    assert_eq!(Checkpoint::open(&dir).unwrap().read("w").unwrap(), [2; 4]);
}

#[test]
fn an_empty_folder_is_no_output() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    fs::create_dir(&dir).unwrap();
    write_small(&dir, &OutputOptions::default(), 1).unwrap();
    assert_eq!(Checkpoint::open(&dir).unwrap().read("w").unwrap(), [1; 4]);
}

#[test]
fn parents_are_created_and_links_resolved() {
    let root = tempfile::tempdir().unwrap();
    write_small(&root.path().join("a/b/out"), &OutputOptions::default(), 1).unwrap();
    let link = root.path().join("link");
    std::os::unix::fs::symlink("a/b/out", &link).unwrap();
    let finished = write_small(&link, &force(), 2).unwrap();
    assert!(finished.dir.ends_with("a/b/out"));
    assert!(link.is_symlink());
    assert_eq!(Checkpoint::open(&link).unwrap().read("w").unwrap(), [2; 4]);
    let dangling = root.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    assert_error!(write_small(&dangling, &force(), 2), E::BadOutput { .. });
}

/// Both of the check and of the real thing, and nothing is created.
#[test]
fn too_little_room_is_found_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("parent/out");
    let tiny = |space| OutputOptions { space, storage: Arc::new(TinyDisk::new(1000)), ..Default::default() };
    OutputFolder::check(&dir, &tiny(1000)).unwrap();
    for result in [OutputFolder::check(&dir, &tiny(1001)), OutputFolder::create(&dir, &tiny(1001)).map(drop)]
    {
        let error = assert_error!(result, E::NoSpace { needed: 1001, free: 1000, .. });
        assert_eq!(error.class(), ErrorClass::Resources);
        let said = error.to_string();
        assert!(said.contains("has 1.0 kB free") && said.contains("needs 1.0 kB"), "{said}");
    }
    let real = OutputOptions { space: u64::MAX, ..Default::default() };
    assert_error!(OutputFolder::check(&dir, &real), E::NoSpace { .. });
    assert!(entries(root.path()).is_empty());
}

#[test]
fn a_place_that_cannot_be_written_is_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(root.path().join("probe"), "").is_ok() {
        return quant_testkit::skipped("this user may write everywhere");
    }
    let result = OutputFolder::check(root.path().join("a/out"), &OutputOptions::default());
    let error = assert_error!(result, E::Write { .. });
    assert_eq!(error.class(), ErrorClass::Resources);
    assert!(error.to_string().contains(&root.path().display().to_string()), "{error}");
}

#[test]
fn failed_replacement_keeps_the_old_output() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    write_small(&dir, &OutputOptions::default(), 1).unwrap();
    let before = snapshot(root.path());
    let options = OutputOptions { storage: Arc::new(TinyDisk::new(100)), ..force() };
    assert_error!(write_small(&dir, &options, 2), E::DiskFull { .. });
    assert_eq!(snapshot(root.path()), before);
}

#[test]
fn dropping_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut out = OutputFolder::create(root.path().join("out"), &OutputOptions::default()).unwrap();
    out.begin_weights(plan(&[("w", Dtype::U8, &[4])], 100)).unwrap();
    out.begin_tensor("w", Dtype::U8, &[4]).unwrap();
    out.write(&[1]).unwrap();
    out.write_file("config.json", b"{}").unwrap();
    drop(out);
    assert!(entries(root.path()).is_empty());
}

#[test]
fn a_killed_run_is_replaced_and_a_living_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let partial = root.path().join("out.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join(MARKER), "").unwrap();
    fs::write(partial.join("model-00001-of-00002.safetensors"), "half").unwrap();
    assert_error!(Checkpoint::open(&partial), E::PartialOutput { .. });
    let living = OutputFolder::create(&dir, &OutputOptions::default()).unwrap();
    assert_eq!(entries(&partial), [MARKER]);
    let error = assert_error!(OutputFolder::create(&dir, &force()), E::OutputBusy { .. });
    assert_eq!(error.class(), ErrorClass::Usage);
    assert!(partial.join(MARKER).exists(), "the refused run must not touch the living one's folder");
    living.finish().unwrap();
}

#[test]
fn an_unfinished_folder_in_place_counts_as_existing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(MARKER), "").unwrap();
    assert_error!(write_small(&dir, &OutputOptions::default(), 1), E::OutputExists { .. });
    write_small(&dir, &force(), 1).unwrap();
    assert!(!dir.join(MARKER).exists());
}

#[test]
fn a_foreign_folder_in_the_way_is_never_deleted() {
    let root = tempfile::tempdir().unwrap();
    let partial = root.path().join("out.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("precious"), "x").unwrap();
    assert_error!(write_small(&root.path().join("out"), &force(), 1), E::BadOutput { .. });
    assert!(partial.join("precious").exists());
    fs::remove_file(partial.join("precious")).unwrap();
    write_small(&root.path().join("out"), &force(), 1).unwrap();
}

#[test]
fn the_input_is_never_touched() {
    let input = Folder::new(&[("model.safetensors", &valid(&[("w", "U8", &[1], &[0])]))]);
    let before = snapshot(input.root.path());
    let options = OutputOptions { inputs: vec![input.dir()], ..force() };
    let link = input.root.path().join("link");
    std::os::unix::fs::symlink("model", &link).unwrap();
    for output in [
        input.dir(),
        input.dir().join("out"),
        input.root.path().to_path_buf(),
        link.clone(),
        link.join("deep/out"),
        input.dir().join("../model"),
    ] {
        let error = assert_error!(OutputFolder::create(&output, &options), E::OutputTouchesInput { .. });
        assert_eq!(error.class(), ErrorClass::Usage);
    }
    fs::remove_file(&link).unwrap();
    fs::remove_dir_all(input.dir().join("deep")).ok();
    assert_eq!(snapshot(input.root.path()), before);
    // A sibling whose name merely begins alike is apart.
    let beside = input.root.path().join("model-w8a8");
    assert!(OutputFolder::create(beside, &options).is_ok());
}

#[test]
fn outputs_that_are_refused_even_with_force() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_error!(OutputFolder::create(&file, &force()), E::BadOutput { .. });
    let repository = root.path().join("repository");
    fs::create_dir_all(repository.join(".git")).unwrap();
    assert_error!(OutputFolder::create(&repository, &force()), E::BadOutput { .. });
    assert_error!(OutputFolder::create(".", &force()), E::BadOutput { .. });
    assert_error!(OutputFolder::create("/", &force()), E::BadOutput { .. });
    assert_error!(OutputFolder::create(root.path().join("absent/.."), &force()), E::BadOutput { .. });
    if Path::new("/dev/shm").is_dir() {
        assert_error!(OutputFolder::create("/dev/shm", &force()), E::BadOutput { .. });
    }
}

#[test]
fn unwritable_places_are_errors() {
    let error = assert_error!(
        OutputFolder::create("/proc/quant-checkpoint-test/out", &OutputOptions::default()),
        E::Write { .. }
    );
    assert_eq!(error.class(), ErrorClass::Resources);
}

/// A folder of a person: `letter.txt` and what the names say.
fn foreign(dir: &Path, more: &[(&str, &str)]) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("letter.txt"), "keep me").unwrap();
    for (name, text) in more {
        fs::write(dir.join(name), text).unwrap();
    }
}

#[test]
fn force_keeps_what_is_not_ours() {
    let other_tool = ("manifest.json", r#"{"tool": "packer 1.0", "output": {}}"#);
    let broken = ("manifest.json", r#"{"tool": "ptq 0.1.0""#);
    let no_hashes = ("manifest.json", r#"{"tool": "ptq 0.1.0"}"#);
    let other_mark = (MARKER, "my notes are incomplete");
    for more in [&[][..], &[other_tool], &[broken], &[no_hashes], &[other_mark]] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("out");
        foreign(&dir, more);
        let before = snapshot(&dir);
        assert_error!(write_small(&dir, &OutputOptions::default(), 1), E::OutputExists { .. });
        assert_eq!(snapshot(&dir), before);
        let finished = write_small(&dir, &force(), 1).unwrap();
        let Some(Leftover::Kept(kept)) = &finished.leftover else { panic!("{:?}", finished.leftover) };
        assert_eq!(kept.file_name().unwrap(), "out.old-1");
        assert_eq!(snapshot(kept), before, "{more:?}");
        assert!(finished.leftover.unwrap().to_string().contains("is now "));
        assert_eq!(Checkpoint::open(&dir).unwrap().read("w").unwrap(), [1; 4]);
        // Now it is ours; what was kept stays.
        assert_eq!(write_small(&dir, &force(), 2).unwrap().leftover, None);
        assert_eq!(entries(root.path()), ["out", "out.old-1"]);
        // Another person's folder in its place finds the next free name.
        fs::remove_dir_all(&dir).unwrap();
        foreign(&dir, &[]);
        write_small(&dir, &force(), 3).unwrap();
        assert_eq!(entries(root.path()), ["out", "out.old-1", "out.old-2"]);
    }
}

#[test]
fn a_failed_run_leaves_a_foreign_folder_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    foreign(&dir, &[]);
    let before = snapshot(root.path());
    let options = OutputOptions { storage: Arc::new(TinyDisk::new(100)), ..force() };
    assert_error!(write_small(&dir, &options, 2), E::DiskFull { .. });
    assert_eq!(snapshot(root.path()), before);
}

#[test]
fn input_files_are_not_touched_either() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    write_small(&dir, &OutputOptions::default(), 1).unwrap();
    let partial = root.path().join("out.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join(MARKER), "").unwrap();
    for folder in [&dir, &partial] {
        let file = folder.join("calibration.jsonl");
        fs::write(&file, "text").unwrap();
        let before = snapshot(root.path());
        let options = OutputOptions { inputs: vec![file.clone()], ..force() };
        assert_error!(write_small(&dir, &options, 2), E::OutputTouchesInput { .. });
        assert_eq!(snapshot(root.path()), before);
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn refused_outputs_leave_no_parents_behind() {
    let input = Folder::new(&[("model.safetensors", &valid(&[("w", "U8", &[1], &[0])]))]);
    let options = OutputOptions { inputs: vec![input.dir()], ..force() };
    let inside = input.dir().join("new/deep/out");
    assert_error!(OutputFolder::create(inside, &options), E::OutputTouchesInput { .. });
    assert_eq!(entries(&input.dir()), ["config.json", "model.safetensors"]);
    // Nor does a run that fails, but for a parent that others use by then.
    let parent = input.root.path().join("a");
    let out = OutputFolder::create(parent.join("b/out"), &options).unwrap();
    assert!(parent.join("b/out.partial").exists());
    drop(out);
    assert!(!parent.exists());
    let out = OutputFolder::create(parent.join("b/out"), &options).unwrap();
    fs::write(parent.join("other"), "").unwrap();
    drop(out);
    assert_eq!(entries(&parent), ["other"]);
    let file = parent.join("other/x/out");
    assert_error!(OutputFolder::create(file, &options), E::BadOutput { .. });
}

/// The folder of a run that was killed in the swap, as the journal says.
fn killed(dir: &Path, journal: &str) {
    let mark = {
        let root = tempfile::tempdir().unwrap();
        let out = OutputFolder::create(root.path().join("x"), &OutputOptions::default()).unwrap();
        fs::read_to_string(out.partial().join(MARKER)).unwrap()
    };
    write_small(dir, &OutputOptions::default(), 7).unwrap();
    fs::write(dir.join(MARKER), mark + journal).unwrap();
}

#[test]
fn a_swap_that_was_killed_is_finished_by_the_next_run() {
    for (fate, left) in [("delete", &["out"][..]), ("keep", &["out", "out.old-1"])] {
        // Both renames are done, the first one, or none.
        for (new, was) in [("out", "out.old-1"), ("out.partial", "out.old-1"), ("out.partial", "out")] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("out");
            killed(&root.path().join(new), &format!("Complete {fate} 1\n"));
            foreign(&root.path().join(was), &[]);
            assert_error!(Checkpoint::open(root.path().join(new)), E::PartialOutput { .. });
            // This run finds an output in its place, and is refused.
            assert_error!(write_small(&dir, &OutputOptions::default(), 1), E::OutputExists { .. });
            assert_eq!(Checkpoint::open(&dir).unwrap().read("w").unwrap(), [7; 4]);
            assert_eq!(entries(root.path()), left);
            write_small(&dir, &force(), 1).unwrap();
            assert_eq!(Checkpoint::open(&dir).unwrap().read("w").unwrap(), [1; 4]);
            assert_eq!(entries(root.path()), left);
        }
    }
    let root = tempfile::tempdir().unwrap();
    killed(&root.path().join("out.partial"), "Complete\n");
    OutputFolder::recover(root.path().join("out"), &OutputOptions::default()).unwrap();
    assert_eq!(entries(root.path()), ["out"]);
    assert_eq!(Checkpoint::open(root.path().join("out")).unwrap().read("w").unwrap(), [7; 4]);
}
