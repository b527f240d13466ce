//! Every rule of the safetensors header, one test each, and arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::{raw, valid};
use proptest::prelude::*;
use quant_checkpoint::{CheckpointError as E, Dtype, ErrorClass, Header, HeaderError as H, MAX_HEADER_BYTES};

fn parse(bytes: &[u8]) -> Result<Header, E> {
    // Both entrances must agree: from memory and from a file.
    let memory = Header::parse("x.safetensors", bytes);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let disk = Header::read(file.path(), "x.safetensors", file.as_file());
    assert_eq!(format!("{memory:?}"), format!("{disk:?}"));
    memory
}

fn fails(header: &str, data: usize) -> E {
    let error = parse(&raw(header, &vec![0; data])).expect_err(header);
    assert_eq!(error.class(), ErrorClass::BadCheckpoint, "{error}");
    assert!(error.to_string().starts_with("x.safetensors: "), "{error}");
    error
}

macro_rules! assert_error {
    ($error:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $error;
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
    }};
}

#[test]
fn a_valid_file() {
    let bytes =
        valid(&[("b", "F32", &[2, 1], &[1; 8]), ("a", "I8", &[3], &[2; 3]), ("e", "F16", &[0, 5], &[])]);
    let header = parse(&bytes).unwrap();
    assert_eq!(header.tensors.keys().collect::<Vec<_>>(), ["a", "b", "e"]);
    let a = &header.tensors["a"];
    assert_eq!((a.dtype, a.shape.as_slice()), (Dtype::I8, &[3][..]));
    assert_eq!(&bytes[a.start as usize..a.end as usize], [2; 3]);
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(header.data_start, bytes.len() as u64 - 11);
}

#[test]
fn trailing_spaces_and_no_tensors() {
    assert!(parse(&raw("{}      ", &[])).unwrap().tensors.is_empty());
}

#[test]
fn scalars_have_one_element() {
    let header = parse(&valid(&[("s", "I64", &[], &[0; 8])])).unwrap();
    assert!(header.tensors["s"].shape.is_empty());
}

#[test]
fn too_short_for_a_length() {
    for n in 0..8 {
        assert_error!(parse(&vec![0; n]).unwrap_err(), E::Header(H::TooShort { found, .. }) if *found == n as u64);
    }
}

#[test]
fn header_too_large_is_refused_before_it_is_touched() {
    for claimed in [MAX_HEADER_BYTES + 1, u64::MAX, u64::MAX - 7, 1 << 63] {
        // The file has 8 bytes: had the length been used, the error would be another one or a huge allocation.
        assert_error!(
            parse(&claimed.to_le_bytes()).unwrap_err(),
            E::Header(H::TooLarge { found, limit, .. }) if *found == claimed && *limit == MAX_HEADER_BYTES
        );
    }
}

#[test]
fn header_beyond_the_end() {
    let mut bytes = 3_u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    assert_error!(parse(&bytes).unwrap_err(), E::Header(H::Truncated { expected: 3, found: 2, .. }));
    let full = MAX_HEADER_BYTES.to_le_bytes();
    assert_error!(parse(&full).unwrap_err(), E::Header(H::Truncated { found: 0, .. }));
}

#[test]
fn header_is_not_json() {
    for text in ["", "{", "[]", "null", " {}", "{}x", "{\"a\":}", "\0\0", "{'a': 1}"] {
        assert_error!(fails(text, 0), E::Json { .. });
    }
    let mut bytes = raw("{\"??\":1}", &[]);
    bytes[10..12].copy_from_slice(&[0xff, 0xfe]);
    assert_error!(parse(&bytes).unwrap_err(), E::Json { .. });
}

#[test]
fn wrong_json_types() {
    for entry in [
        "1",
        "[]",
        r#"{"dtype":1,"shape":[],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":1,"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}"#,
        r#"{"dtype":"F32","shape":[1],"data_offsets":[0]}"#,
        r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#,
        r#"{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}"#,
        r#"{"dtype":"F32","shape":[1],"data_offsets":"0,4"}"#,
    ] {
        assert_error!(fails(&format!("{{\"t\":{entry}}}"), 4), E::Json { .. });
    }
    assert_error!(fails(r#"{"__metadata__":{"a":1}}"#, 0), E::Json { .. });
}

#[test]
fn duplicate_tensor() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    assert_error!(
        fails(&format!(r#"{{"t":{entry},"t":{entry}}}"#), 1),
        E::DuplicateKey { key, scope, .. } if key == "t" && scope == "the header"
    );
    // The same name once escaped is the same name.
    assert_error!(fails(&format!(r#"{{"t":{entry},"\u0074":{entry}}}"#), 1), E::DuplicateKey { .. });
}

#[test]
fn duplicate_field_of_a_tensor() {
    for (field, value) in [("dtype", "\"U8\""), ("shape", "[1]"), ("data_offsets", "[0,1]")] {
        let header =
            format!(r#"{{"t":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"{field}":{value}}}}}"#);
        assert_error!(
            fails(&header, 1),
            E::DuplicateKey { key, scope, .. } if key == field && scope.contains("\"t\"")
        );
    }
}

#[test]
fn duplicate_metadata() {
    assert_error!(
        fails(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
        E::DuplicateKey { key, .. } if key == "__metadata__"
    );
    assert_error!(
        fails(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0),
        E::DuplicateKey { key, scope, .. } if key == "a" && scope == "__metadata__"
    );
}

#[test]
fn unknown_dtype_is_named() {
    for name in ["F33", "float32", "f32", ""] {
        let header = format!(r#"{{"t":{{"dtype":"{name}","shape":[1],"data_offsets":[0,4]}}}}"#);
        assert_error!(
            fails(&header, 4),
            E::Header(H::UnknownDtype { tensor, found, .. }) if tensor == "t" && found == name
        );
    }
}

#[test]
fn missing_fields() {
    for (header, missing) in [
        (r#"{"t":{"shape":[1],"data_offsets":[0,4]}}"#, "dtype"),
        (r#"{"t":{"dtype":"F32","data_offsets":[0,4]}}"#, "shape"),
        (r#"{"t":{"dtype":"F32","shape":[1]}}"#, "data_offsets"),
    ] {
        assert_error!(fails(header, 4), E::Header(H::MissingField { field, .. }) if *field == missing);
    }
}

#[test]
fn unknown_field() {
    let header = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}}"#;
    assert_error!(fails(header, 4), E::Header(H::UnknownField { found, .. }) if found == "strides");
}

#[test]
fn bad_names() {
    let long = "n".repeat(1025);
    for name in ["", "a\\u0000b", "a\\nb", long.as_str()] {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        assert_error!(fails(&header, 1), E::Header(H::BadTensorName { .. }));
    }
}

#[test]
fn too_many_dimensions() {
    let shape = vec!["1"; 1000].join(",");
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,1]}}}}"#);
    assert_error!(fails(&header, 1), E::Header(H::TooManyDimensions { limit: 16, .. }));
}

#[test]
fn size_overflow() {
    for shape in ["18446744073709551615,2", "4294967296,4294967296", "2305843009213693952,4"] {
        let header = format!(r#"{{"t":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}"#);
        assert_error!(fails(&header, 4), E::Header(H::SizeOverflow { tensor, .. }) if tensor == "t");
    }
}

#[test]
fn fractional_bytes() {
    assert_error!(
        fails(r#"{"t":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2),
        E::Header(H::FractionalBytes { dtype: Dtype::F4, .. })
    );
}

#[test]
fn offsets_reversed() {
    assert_error!(
        fails(r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}"#, 1),
        E::Header(H::OffsetsReversed { start: 1, end: 0, .. })
    );
}

#[test]
fn offsets_disagree_with_shape() {
    assert_error!(
        fails(r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
        E::Header(H::SizeMismatch { expected: 8, found: 4, .. })
    );
    let far = format!(r#"{{"t":{{"dtype":"F32","shape":[2],"data_offsets":[0,{}]}}}}"#, u64::MAX);
    assert_error!(fails(&far, 8), E::Header(H::SizeMismatch { found: u64::MAX, .. }));
}

const TWO: fn([u64; 4]) -> String = |[a, b, c, d]| {
    format!(
        r#"{{"s":{{"dtype":"U8","shape":[{}],"data_offsets":[{a},{b}]}},"t":{{"dtype":"U8","shape":[{}],"data_offsets":[{c},{d}]}}}}"#,
        b - a,
        d - c
    )
};

#[test]
fn overlap() {
    assert_error!(
        fails(&TWO([0, 4, 3, 6]), 6),
        E::Header(H::Overlap { tensor, expected: 4, found: 3, .. }) if tensor == "t"
    );
    assert_error!(fails(&TWO([0, 4, 0, 4]), 4), E::Header(H::Overlap { .. }));
}

#[test]
fn hole() {
    assert_error!(
        fails(&TWO([0, 4, 5, 6]), 6),
        E::Header(H::Hole { tensor, expected: 4, found: 5, .. }) if tensor == "t"
    );
    assert_error!(fails(&TWO([1, 2, 2, 3]), 3), E::Header(H::Hole { expected: 0, found: 1, .. }));
    let far = u64::MAX - 1;
    assert_error!(fails(&TWO([0, 1, far, far + 1]), 1), E::Header(H::Hole { .. }));
}

#[test]
fn truncated_data_and_a_tail() {
    let header = r#"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let size = 8 + header.len() as u64 + 4;
    for data in [0, 3, 5, 100] {
        assert_error!(
            fails(header, data),
            E::Header(H::FileSize { expected, found, .. })
                if *expected == size && *found == size - 4 + data as u64
        );
    }
    assert_error!(fails("{}", 1), E::Header(H::FileSize { .. }));
}

/// Tensors of random dtypes and shapes, in a random order in the file.
fn tensors() -> impl Strategy<Value = Vec<(String, Dtype, Vec<usize>)>> {
    let dtype = prop::sample::select(vec![Dtype::F32, Dtype::BF16, Dtype::I8, Dtype::I64, Dtype::BOOL]);
    let tensor = (dtype, prop::collection::vec(0_usize..5, 0..4));
    prop::collection::btree_map("[a-z.]{1,12}", tensor, 0..8)
        .prop_map(|m| m.into_iter().map(|(n, (d, s))| (n, d, s)).collect::<Vec<_>>())
        .prop_shuffle()
}

fn build(tensors: &[(String, Dtype, Vec<usize>)]) -> Vec<u8> {
    let rows: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(i, (n, d, s))| {
            let bytes = s.iter().product::<usize>() * d.bitsize() / 8;
            (n.as_str(), d.to_string(), s.as_slice(), vec![i as u8; bytes])
        })
        .collect();
    let rows: Vec<_> = rows.iter().map(|(n, d, s, b)| (*n, d.as_str(), *s, b.as_slice())).collect();
    valid(&rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn valid_files_parse_as_the_reference_does(tensors in tensors()) {
        let bytes = build(&tensors);
        let ours = Header::parse("x", &bytes).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(ours.tensors.len(), theirs.len());
        for (name, entry) in &ours.tensors {
            let view = theirs.tensor(name).unwrap();
            prop_assert_eq!(view.dtype(), entry.dtype);
            prop_assert_eq!(view.shape(), entry.shape.as_slice());
            prop_assert_eq!(view.data(), &bytes[entry.start as usize..entry.end as usize]);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::parse("x", &bytes);
    }

    #[test]
    fn random_header_text_never_panics(text in "\\PC{0,120}", data in 0_usize..32) {
        let _ = Header::parse("x", &raw(&format!("{{{text}}}"), &vec![0; data]));
    }

    /// A mutated file either fails or still is what the reference accepts: nothing passes here that is refused there.
    #[test]
    fn mutated_files_never_panic(
        tensors in tensors(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..6),
    ) {
        let mut bytes = build(&tensors);
        for (at, value, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes.insert(at, value),
                2 => { bytes.remove(at); }
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.is_empty() { break; }
        }
        if let Ok(header) = Header::parse("x", &bytes) {
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
            let sum: u64 = header.tensors.values().map(|e| e.end - e.start).sum();
            prop_assert_eq!(header.data_start + sum, bytes.len() as u64);
        }
    }
}
