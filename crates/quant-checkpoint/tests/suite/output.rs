//! Output folders: layout, hashes, atomicity, refusals, full disks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::output::{TinyDisk, plan};
use crate::common::{Folder, entries, snapshot, valid};
use proptest::prelude::*;
use quant_checkpoint::{
    Checkpoint, CheckpointError as E, DEFAULT_SHARD_BYTES, Disk, Dtype, ErrorClass, Finished, MARKER,
    OutputFolder, OutputOptions, ShardNaming, ShardPlan, Storage, StorageFile, TensorDecl, TensorHash,
};

#[test]
fn nothing_appears_before_finish_and_the_index_comes_last() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let mut out = OutputFolder::create(&dir, &OutputOptions::default()).unwrap();
    let partial = out.partial().to_path_buf();
    assert_eq!(entries(&partial), [MARKER]);
    out.begin_weights(plan(&[("a", Dtype::U8, &[3]), ("b", Dtype::F32, &[1])], 4)).unwrap();
    out.tensor("a", Dtype::U8, &[3], &[1, 2, 3]).unwrap();
    out.tensor("b", Dtype::F32, &[1], &1.5_f32.to_le_bytes()).unwrap();
    let hashes = out.end_weights().unwrap().clone();
    assert_eq!(hashes["a"], TensorHash::of(&[1, 2, 3]));
    out.write_file("config.json", b"{}").unwrap();
    out.write_file("optional/extra.json", b"{}").unwrap();
    assert!(!dir.exists());
    assert!(!partial.join("model.safetensors.index.json").exists());
    assert_error!(Checkpoint::open(&partial), E::PartialOutput { .. });

    let finished = out.finish().unwrap();
    assert_eq!(entries(root.path()), ["out"]);
    let files: Vec<_> = finished.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        files,
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "config.json",
            "optional/extra.json",
            "model.safetensors.index.json"
        ]
    );
    for file in &finished.files {
        assert_eq!(fs::metadata(dir.join(&file.name)).unwrap().len(), file.bytes, "{}", file.name);
    }
    let model = Checkpoint::open(&dir).unwrap();
    assert_eq!(model.declared_bytes(), Some(7));
    assert_eq!(model.read("a").unwrap(), [1, 2, 3]);
    for (name, hash) in &finished.hashes {
        assert_eq!(model.sha256(name).unwrap(), *hash);
    }
    assert!(model.stray_weight_files().unwrap().is_empty());
}

#[test]
fn index_text_is_in_declared_order() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let mut out = OutputFolder::create(&dir, &OutputOptions::default()).unwrap();
    let specs = vec![TensorDecl::new("z", Dtype::U8, [1]), TensorDecl::new("a", Dtype::F32, [1])];
    out.begin_weights(ShardPlan::new(specs, &ShardNaming::msmodelslim(), 100).unwrap()).unwrap();
    out.tensor("z", Dtype::U8, &[1], &[0]).unwrap();
    out.tensor("a", Dtype::F32, &[1], &[0; 4]).unwrap();
    out.end_weights().unwrap();
    out.finish().unwrap();
    let text = fs::read_to_string(dir.join("quant_model_weights.safetensors.index.json")).unwrap();
    let file = "quant_model_weights-00001-of-00001.safetensors";
    let want = format!(
        "{{\n  \"metadata\": {{\n    \"total_size\": 5\n  }},\n  \"weight_map\": {{\n    \"z\": \"{file}\",\n    \
         \"a\": \"{file}\"\n  }}\n}}\n"
    );
    assert_eq!(text, want);
    // The data of a safetensors file starts at a multiple of 8 and says that it is PyTorch's.
    let bytes = fs::read(dir.join(file)).unwrap();
    let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((8 + length) % 8, 0);
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn arrival_order_and_pieces_do_not_matter() {
    let root = tempfile::tempdir().unwrap();
    let tensors: [(&str, Dtype, &[usize]); 4] = [
        ("a", Dtype::I8, &[3]),
        ("b", Dtype::F32, &[500_000]),
        ("c", Dtype::BF16, &[7]),
        ("d", Dtype::I8, &[1_000_003]),
    ];
    let data = |i: usize| -> Vec<u8> {
        let (_, dtype, shape) = tensors[i];
        (0..shape[0] * dtype.bitsize() / 8).map(|k| (k * 31 + i) as u8).collect()
    };
    let mut results = Vec::new();
    for (run, order) in [[0, 1, 2, 3], [3, 1, 0, 2]].into_iter().enumerate() {
        let dir = root.path().join(format!("out{run}"));
        let mut out = OutputFolder::create(&dir, &OutputOptions::default()).unwrap();
        out.begin_weights(plan(&tensors, 2_000_050)).unwrap();
        for i in order {
            let (name, dtype, shape) = tensors[i];
            out.begin_tensor(name, dtype, shape).unwrap();
            for piece in data(i).chunks(if run == 0 { usize::MAX } else { 77_777 }) {
                out.write(piece).unwrap();
            }
            out.end_tensor().unwrap();
        }
        out.end_weights().unwrap();
        let finished = out.finish().unwrap();
        assert!(
            finished.stats.bytes > 3_000_017 && finished.stats.hash_s > 0.0 && finished.stats.write_s > 0.0
        );
        results.push((finished.hashes, snapshot(&dir)));
        let model = Checkpoint::open_named(&dir, "model");
        assert_error!(model, E::MissingFile { .. }); // no config.json in this test
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0].0["d"], TensorHash::of(&data(3)));
}

#[test]
fn copied_tensors_and_files() {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let input = Folder::new(&[("model.safetensors", &valid(&[("x", "BF16", &[1500, 1000], &bytes)]))]);
    input.put("tokenizer.json", &bytes);
    let model = Checkpoint::open(input.dir()).unwrap();
    let dir = input.root.path().join("out");
    let options = OutputOptions { inputs: vec![input.dir()], ..OutputOptions::default() };
    let mut out = OutputFolder::create(&dir, &options).unwrap();
    out.begin_weights(plan(&[("y", Dtype::BF16, &[1500, 1000])], DEFAULT_SHARD_BYTES)).unwrap();
    out.copy_tensor(&model, "x", "y").unwrap();
    assert_eq!(out.end_weights().unwrap()["y"], model.sha256("x").unwrap());
    out.copy_file(&input.dir().join("tokenizer.json"), "tokenizer.json").unwrap();
    assert_error!(out.copy_file(&input.dir().join("absent"), "absent"), E::MissingFile { .. });
    out.write_file("config.json", b"{}").unwrap();
    out.finish().unwrap();
    assert_eq!(fs::read(dir.join("tokenizer.json")).unwrap(), bytes);
    assert_eq!(Checkpoint::open(&dir).unwrap().read("y").unwrap(), bytes);
}

#[test]
fn an_empty_plan_is_an_empty_file() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let mut out = OutputFolder::create(&dir, &OutputOptions::default()).unwrap();
    out.begin_weights(plan(&[], 10)).unwrap();
    out.end_weights().unwrap();
    out.finish().unwrap();
    assert_eq!(Checkpoint::open_file(dir.join("model.safetensors")).unwrap().tensors().len(), 0);
}

#[test]
fn names_that_leave_the_folder() {
    let root = tempfile::tempdir().unwrap();
    let mut out = OutputFolder::create(root.path().join("out"), &OutputOptions::default()).unwrap();
    for name in ["", "/etc/x", "../x", "a/../../x", ".", "./x", "a//b", "a/", "a\\b", MARKER] {
        let error = assert_error!(out.write_file(name, b""), E::BadOutputName { .. });
        assert_eq!(error.class(), ErrorClass::Usage);
    }
    out.write_file("x.json", b"").unwrap();
    assert_error!(out.write_file("x.json", b""), E::BadOutputName { .. });
    out.write_file("model.safetensors", b"").unwrap();
    let taken = out.begin_weights(plan(&[("w", Dtype::U8, &[1])], 10));
    assert_error!(taken, E::BadOutputName { name, .. } if name == "model.safetensors");
}

#[test]
fn violations_of_the_plan() {
    let root = tempfile::tempdir().unwrap();
    let start = || {
        let mut out = OutputFolder::create(root.path().join("out"), &OutputOptions::default()).unwrap();
        out.begin_weights(plan(&[("a", Dtype::U8, &[2]), ("b", Dtype::U8, &[2])], 100)).unwrap();
        out
    };
    let mut out = start();
    assert_error!(out.tensor("x", Dtype::U8, &[2], &[0; 2]), E::PlanViolation { tensor, .. } if tensor == "x");
    assert_error!(out.tensor("a", Dtype::I8, &[2], &[0; 2]), E::PlanViolation { .. });
    assert_error!(out.tensor("a", Dtype::U8, &[1, 2], &[0; 2]), E::PlanViolation { .. });
    out.tensor("a", Dtype::U8, &[2], &[0; 2]).unwrap();
    assert_error!(
        out.tensor("a", Dtype::U8, &[2], &[0; 2]),
        E::PlanViolation { detail, .. } if detail == "written twice"
    );
    assert_error!(out.write(&[0]), E::PlanViolation { .. });
    assert_error!(out.end_tensor(), E::PlanViolation { .. });
    assert_error!(out.begin_weights(plan(&[], 1)), E::PlanViolation { .. });
    assert_error!(out.end_weights(), E::PlanViolation { tensor, .. } if tensor == "b");
    drop(out);

    let mut out = start();
    assert_error!(out.tensor("a", Dtype::U8, &[2], &[0; 3]), E::PlanViolation { .. });
    drop(out);
    let mut out = start();
    let error = assert_error!(out.tensor("a", Dtype::U8, &[2], &[0; 1]), E::PlanViolation { .. });
    assert_eq!(error.class(), ErrorClass::Usage);
    drop(out);
    let mut out = start();
    out.begin_tensor("a", Dtype::U8, &[2]).unwrap();
    assert_error!(out.begin_tensor("b", Dtype::U8, &[2]), E::PlanViolation { .. });
    assert_error!(out.end_weights(), E::PlanViolation { .. });
    drop(out);
    assert_error!(start().finish(), E::PlanViolation { .. });
    assert!(entries(root.path()).is_empty());
}

/// Whatever write is the one that no longer fits: a clear error, and nothing left.
#[test]
fn full_disk_at_every_point() {
    let run = |room: u64| {
        let root = tempfile::tempdir().unwrap();
        let options = OutputOptions { storage: Arc::new(TinyDisk::new(room)), ..OutputOptions::default() };
        let write = || -> Result<Finished, E> {
            let mut out = OutputFolder::create(root.path().join("out"), &options)?;
            out.begin_weights(plan(&[("a", Dtype::U8, &[40]), ("b", Dtype::U8, &[40])], 40))?;
            out.tensor("a", Dtype::U8, &[40], &[1; 40])?;
            out.tensor("b", Dtype::U8, &[40], &[2; 40])?;
            out.end_weights()?;
            out.write_file("config.json", b"{}")?;
            out.finish()
        };
        let result = write();
        let left = entries(root.path());
        (result, left)
    };
    let (complete, _) = run(1_000_000);
    let files: u64 = complete.unwrap().files.iter().map(|f| f.bytes).sum();
    let root = tempfile::tempdir().unwrap();
    let begun = OutputFolder::create(root.path().join("out"), &OutputOptions::default()).unwrap();
    // The mark is a file too.
    let total = files + fs::metadata(begun.partial().join(MARKER)).unwrap().len();
    // Steps of 7 hit every file and both of its parts (header, data); each step costs several syncs.
    for room in (0..total).step_by(7).chain([total - 1]) {
        let (result, left) = run(room);
        let error = assert_error!(result, E::DiskFull { .. });
        assert_eq!(error.class(), ErrorClass::Resources);
        assert!(left.is_empty(), "{room}: {left:?}");
    }
    assert!(run(total).0.is_ok());
}

/// The kernel's own ENOSPC, from a large tensor whose writer thread fails while the caller still sends.
#[test]
fn full_device() {
    #[derive(Debug)]
    struct DevFull;
    impl Storage for DevFull {
        fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
            if path.ends_with(MARKER) {
                return Disk.create(path);
            }
            Ok(Box::new(fs::File::options().write(true).open("/dev/full")?))
        }
    }
    if !Path::new("/dev/full").exists() {
        quant_testkit::skipped("/dev/full not present");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let options = OutputOptions { storage: Arc::new(DevFull), ..OutputOptions::default() };
    let mut out = OutputFolder::create(root.path().join("out"), &options).unwrap();
    out.begin_weights(plan(&[("a", Dtype::U8, &[64 << 20])], DEFAULT_SHARD_BYTES)).unwrap();
    assert_error!(out.tensor("a", Dtype::U8, &[64 << 20], &vec![1; 64 << 20]), E::DiskFull { .. });
    // Later calls fail too, and do not hang.
    assert!(out.write(&[1]).is_err() || out.end_weights().is_err());
    drop(out);
    assert!(entries(root.path()).is_empty());
}

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

/// Tensors, largest shard, msmodelslim's names or not.
fn arbitrary() -> impl Strategy<Value = (Tensors, u64, bool)> {
    let dtype = prop::sample::select(vec![
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I8,
        Dtype::U8,
        Dtype::I32,
        Dtype::I64,
    ]);
    let tensor = (dtype, prop::collection::vec(0_usize..6, 0..4));
    let tensors = prop::collection::btree_map("[a-z.\"é ]{1,10}", tensor, 1..10)
        .prop_map(|m| m.into_iter().map(|(n, (d, s))| (n, d, s)).collect::<Vec<_>>())
        .prop_shuffle();
    (tensors, 1_u64..400, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// What is written is read back, by us and by the reference reader, whatever the dtypes, shapes and shard size.
    #[test]
    fn round_trip((tensors, max, slim) in arbitrary(), seed in any::<u8>()) {
        let root = tempfile::tempdir().unwrap();
        let dir: PathBuf = root.path().join("out");
        let naming = if slim { ShardNaming::msmodelslim() } else { ShardNaming::hugging_face() };
        let specs = tensors.iter().map(|(n, d, s)| TensorDecl::new(n.as_str(), *d, s.as_slice())).collect();
        let bytes = |i: usize| -> Vec<u8> {
            let (_, d, s) = &tensors[i];
            (0..s.iter().product::<usize>() * d.bitsize() / 8).map(|k| (k * 7 + i) as u8 ^ seed).collect()
        };
        let mut out = OutputFolder::create(&dir, &OutputOptions::default()).unwrap();
        out.begin_weights(ShardPlan::new(specs, &naming, max).unwrap()).unwrap();
        for (i, (n, d, s)) in tensors.iter().enumerate() {
            out.tensor(n, *d, s, &bytes(i)).unwrap();
        }
        out.end_weights().unwrap();
        out.write_file("config.json", b"{}").unwrap();
        let finished = out.finish().unwrap();
        let model = Checkpoint::open(&dir).unwrap();
        prop_assert_eq!(model.tensors().len(), tensors.len());
        for (i, (n, d, s)) in tensors.iter().enumerate() {
            let info = model.tensor_shaped(n, s).unwrap();
            prop_assert_eq!(info.dtype, *d);
            prop_assert_eq!(model.read(n).unwrap(), bytes(i));
            prop_assert_eq!(finished.hashes[n], TensorHash::of(&bytes(i)));
            prop_assert_eq!(info.range.start % (d.bitsize() as u64 / 8), 0);
            let file = fs::read(dir.join(&*info.file)).unwrap();
            let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(reference.tensor(n).unwrap().data(), bytes(i));
        }
    }
}

/// A disk whose files stay empty, which remembers how many bytes of a file were waited for at most, at a time.
#[derive(Debug, Default)]
struct Forgetful(Arc<AtomicU64>);

#[derive(Debug)]
struct ForgetfulFile {
    unsynced: u64,
    most: Arc<AtomicU64>,
}

impl Storage for Forgetful {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Disk.create(path)?;
        Ok(Box::new(ForgetfulFile { unsynced: 0, most: Arc::clone(&self.0) }))
    }
}

impl StorageFile for ForgetfulFile {
    fn write_all_at(&mut self, bytes: &[u8], _: u64) -> io::Result<()> {
        self.unsynced += bytes.len() as u64;
        self.most.fetch_max(self.unsynced, Ordering::Relaxed);
        Ok(())
    }

    fn truncate(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        Ok(())
    }
}

/// The disk works while tensors are made: of a large shard never much is left to be waited for.
#[test]
fn large_shards_are_synced_on_the_way() {
    const MIB: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let most = Arc::new(AtomicU64::new(0));
    let options =
        OutputOptions { storage: Arc::new(Forgetful(Arc::clone(&most))), ..OutputOptions::default() };
    let mut out = OutputFolder::create(dir.path().join("out"), &options).unwrap();
    let names: Vec<String> = (0..6).map(|i| format!("w{i}")).collect();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), Dtype::U8, &[32 * MIB][..])).collect();
    out.begin_weights(plan(&tensors, 1 << 30)).unwrap();
    for name in &names {
        out.tensor(name, Dtype::U8, &[32 * MIB], &vec![1; 32 * MIB]).unwrap();
    }
    out.end_weights().unwrap();
    let most = most.load(Ordering::Relaxed);
    assert!((64 * MIB as u64..66 * MIB as u64).contains(&most), "{most}");
}
