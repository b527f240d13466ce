//! Reading tensors: conversions, hashes, rows, waves, and what can be wrong with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;

use crate::common::{Folder, f32s, one, open, valid};
use half::{bf16, f16};
use ndarray::array;
use quant_checkpoint::{Checkpoint, CheckpointError as E, Dtype, ErrorClass, TensorHash};

#[test]
fn file_cut_after_opening_is_an_error() {
    let folder = Folder::new(&[("model.safetensors", &one("w"))]);
    let model = Checkpoint::open(folder.dir()).unwrap();
    fs::File::options()
        .write(true)
        .open(folder.dir().join("model.safetensors"))
        .unwrap()
        .set_len(80)
        .unwrap();
    assert_error!(model.read("w"), E::Read { .. });
    assert_error!(model.read_f32("w"), E::Read { .. });
}

#[test]
fn conversions_are_exact_and_hashed() {
    let values = [0.0_f32, -0.0, 1.0, -1.5, 65504.0, 6.103_515_6e-5];
    let half: Vec<u8> = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let brain: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let bytes = valid(&[
        // An odd length first, so that the rest is not aligned in the file.
        ("odd", "U8", &[3], &[1, 2, 3]),
        ("f32", "F32", &[2, 3], &f32s(&values)),
        ("f16", "F16", &[2, 3], &half),
        ("bf16", "BF16", &[2, 3], &brain),
    ]);
    let folder = Folder::new(&[("model.safetensors", &bytes)]);
    let model = Checkpoint::open(folder.dir()).unwrap();
    for (name, stored, want) in [
        ("f32", &f32s(&values), values.to_vec()),
        ("f16", &half, values.to_vec()),
        ("bf16", &brain, values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()),
    ] {
        let (got, hash) = model.read_matrix_f32_hashed(name).unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(got.as_slice().unwrap()), bits(&want), "{name}");
        assert_eq!(got.dim(), (2, 3));
        assert_eq!(hash, TensorHash::of(stored), "{name}");
        assert_eq!(model.sha256(name).unwrap(), hash);
        assert_eq!(&model.read(name).unwrap(), stored, "{name}");
        assert_eq!(model.read_f32(name).unwrap(), got.clone().into_dyn());
        assert_eq!(model.read_matrix_f32(name).unwrap(), got);
    }
    assert!(model.read_stats().bytes > 0);
}

/// A tensor of several waves and pieces with an uneven tail: values, hash, rows and gathered rows.
#[test]
fn large_tensors_in_waves() {
    let (rows, columns) = (3001_usize, 3001_usize);
    let words: Vec<u16> =
        (0..rows * columns).map(|i| bf16::from_f32((i % 1999) as f32 - 999.0).to_bits()).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let folder = Folder::new(&[("model.safetensors", &valid(&[("w", "BF16", &[rows, columns], &bytes)]))]);
    let model = Checkpoint::open(folder.dir()).unwrap();
    let (all, hash) = model.read_matrix_f32_hashed("w").unwrap();
    assert_eq!(hash, TensorHash::of(&bytes));
    assert_eq!(model.sha256("w").unwrap(), hash);
    assert!(all.iter().zip(&words).all(|(&v, &w)| v == bf16::from_bits(w).to_f32()));
    assert_eq!(model.read_matrix_f32("w").unwrap(), all);
    let some = model.read_rows_f32("w", 1234..1300).unwrap();
    assert_eq!(some, all.slice(ndarray::s![1234..1300, ..]));
    let gathered = model.read_row_gather("w", &[3000, 0, 7, 7]).unwrap();
    assert_eq!(gathered, all.select(ndarray::Axis(0), &[3000, 0, 7, 7]));

    // By rows: the same values in order, the same hash, and the visitor's error ends the reading.
    let (mut next, mut seen) = (0, Vec::new());
    let visited = model.visit_rows_f32::<E>("w", true, |first, part| {
        assert_eq!((first, part.ncols()), (next, columns));
        next += part.nrows();
        seen.extend(part.iter().copied());
        Ok(())
    });
    assert_eq!((visited.unwrap(), next), (Some(hash), rows));
    assert_eq!(seen, all.as_slice().unwrap());
    assert_eq!(model.visit_rows_f32::<E>("w", false, |_, _| Ok(())).unwrap(), None);
    let mut calls = 0;
    let stopped = model.visit_rows_f32("w", true, |_, _| {
        calls += 1;
        Err(E::OutOfMemory { tensor: "w".to_owned(), bytes: 1 })
    });
    assert_error!(stopped, E::OutOfMemory { .. });
    assert_eq!(calls, 1);

    // One and two threads give the same array and hash.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| model.read_matrix_f32_hashed("w").unwrap()), (all, hash));
}

#[test]
fn first_bad_value_of_a_large_tensor() {
    let (rows, columns) = (3000_usize, 3000_usize);
    let mut values = vec![0.5_f32; rows * columns];
    values[2000 * columns + 17] = f32::NAN;
    values[2999 * columns + 3] = f32::INFINITY;
    let folder =
        Folder::new(&[("model.safetensors", &valid(&[("w", "F32", &[rows, columns], &f32s(&values))]))]);
    let model = Checkpoint::open(folder.dir()).unwrap();
    for result in [model.read_f32("w").err(), model.read_matrix_f32_hashed("w").err()] {
        match result {
            Some(E::NonFinite { tensor, index, value, file }) => {
                assert_eq!((tensor.as_str(), index.as_slice()), ("w", &[2000, 17][..]));
                assert!(value.is_nan() && file == "model.safetensors");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(model.read_rows_f32("w", 0..2000).is_ok());
    assert_error!(model.read_rows_f32("w", 1999..2001), E::NonFinite { index, .. } if *index == [2000, 17]);
    assert_error!(
        model.read_row_gather("w", &[1, 2999]),
        E::NonFinite { index, value, .. } if *index == [2999, 3] && value.is_infinite()
    );
}

#[test]
fn non_finite_halves() {
    let nan = f16::NAN.to_le_bytes();
    let inf = bf16::NEG_INFINITY.to_le_bytes();
    let model = open(&[(
        "model.safetensors",
        &valid(&[
            ("h", "F16", &[1, 1, 1], &nan),
            ("b", "BF16", &[1], &inf),
            ("s", "F32", &[], &f32s(&[f32::NAN])),
        ]),
    )])
    .unwrap();
    assert_error!(model.read_f32("h"), E::NonFinite { index, .. } if *index == [0, 0, 0]);
    assert_error!(model.read_vector_f32("b"), E::NonFinite { value, .. } if *value == f32::NEG_INFINITY);
    let error = assert_error!(model.read_f32("s"), E::NonFinite { index, .. } if index.is_empty());
    assert_eq!(error.class(), ErrorClass::BadCheckpoint);
}

#[test]
fn integers() {
    let model = open(&[(
        "model.safetensors",
        &valid(&[
            ("i8", "I8", &[2], &[0xff, 1]),
            ("i32", "I32", &[1, 1], &(-5_i32).to_le_bytes()),
            ("i64", "I64", &[1], &i64::MIN.to_le_bytes()),
            ("u8", "U8", &[3], &[1, 2, 255]),
        ]),
    )])
    .unwrap();
    assert_eq!(model.read_i8("i8").unwrap(), array![-1, 1].into_dyn());
    assert_eq!(model.read_i32("i32").unwrap(), array![[-5]].into_dyn());
    assert_eq!(model.read_i64("i64").unwrap(), array![i64::MIN].into_dyn());
    assert_eq!(model.read("u8").unwrap(), [1, 2, 255]);
    let error = assert_error!(model.read_i8("u8"), E::DtypeMismatch { found: Dtype::U8, expected: "I8", .. });
    assert_eq!(error.class(), ErrorClass::Unsupported);
    assert_error!(model.read_f32("i8"), E::DtypeMismatch { found: Dtype::I8, .. });
    assert_error!(model.read_row_gather("i32", &[0]), E::DtypeMismatch { .. });
}

#[test]
fn wrong_shapes_and_rows() {
    let bytes = f32s(&[1.0, 2.0, 3.0, 4.0]);
    let model =
        open(&[("model.safetensors", &valid(&[("m", "F32", &[2, 2], &bytes), ("v", "F32", &[4], &bytes)]))])
            .unwrap();
    assert_error!(model.read("absent"), E::NoSuchTensor { tensor, .. } if tensor == "absent");
    assert_error!(model.read_vector_f32("m"), E::ShapeMismatch { .. });
    assert_error!(model.read_matrix_f32("v"), E::ShapeMismatch { found, .. } if *found == [4]);
    assert_error!(model.tensor_shaped("m", &[2, 3]), E::ShapeMismatch { .. });
    assert!(model.tensor_shaped("m", &[2, 2]).is_ok());
    assert_error!(model.read_rows_f32("m", 1..3), E::RowOutOfRange { row: 3, rows: 2, .. });
    assert_error!(model.read_rows_f32("m", 3..3), E::RowOutOfRange { .. });
    assert_error!(model.read_row_gather("m", &[0, 2]), E::RowOutOfRange { row: 2, .. });
    assert_eq!(model.read_rows_f32("m", 1..2).unwrap(), array![[3.0, 4.0]]);
    assert_eq!(model.read_rows_f32("m", 2..2).unwrap().dim(), (0, 2));
    assert_eq!(model.read_row_gather("m", &[]).unwrap().dim(), (0, 2));
}

#[test]
fn empty_tensors() {
    let model =
        open(&[("model.safetensors", &valid(&[("e", "BF16", &[0, 3], &[]), ("c", "F32", &[2, 0], &[])]))])
            .unwrap();
    assert_eq!(model.read_matrix_f32_hashed("e").unwrap().1, TensorHash::of(b""));
    assert_eq!(model.sha256("e").unwrap(), TensorHash::of(b""));
    assert_eq!(model.read_row_gather("c", &[1, 0]).unwrap().dim(), (2, 0));
}

/// A sparse file may honestly hold a tensor larger than memory: an error, not an abort.
#[test]
fn absurd_allocation_is_an_error() {
    let folder = Folder::new(&[]);
    let size = 1_u64 << 42;
    let header = format!(r#"{{"w":{{"dtype":"BF16","shape":[{}],"data_offsets":[0,{size}]}}}}"#, size / 2);
    let path = folder.dir().join("model.safetensors");
    fs::write(&path, crate::common::raw(&header, &[])).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    if file.set_len(8 + header.len() as u64 + size).is_err() {
        quant_testkit::skipped("the file system refuses a sparse file of 4 TB");
        return;
    }
    let model = Checkpoint::open(folder.dir()).unwrap();
    let error = assert_error!(model.read_f32("w"), E::OutOfMemory { bytes, .. } if *bytes == 2 * size);
    assert_eq!(error.class(), ErrorClass::Resources);
}
