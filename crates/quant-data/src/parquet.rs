//! Tables in the layout in which the Hugging Face hub publishes data sets.

use crate::DataError;
use crate::contain::contain;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};
use std::path::Path;

/// What such a file begins and ends with.
pub(crate) const MARK: &[u8] = b"PAR1";
/// Most rows of a file.
const MOST_ROWS: i64 = 50_000_000;

/// The rows of a table as records; columns that hold lists or records keep their shape.
///
/// # Errors
/// [`DataError::NotText`] for a file that cannot be unpacked, or has more in it than is held in memory.
pub(crate) fn rows(path: &Path, bytes: Vec<u8>, limit: u64) -> Result<Vec<Value>, DataError> {
    let bad = |reason: String| DataError::NotText {
        path: path.to_owned(),
        what: format!("a parquet file that cannot be read ({reason})"),
        advice: "it may be cut off, or packed in a way that is not read here".to_owned(),
    };
    let read = || -> Result<Vec<Value>, String> {
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(|e| e.to_string())?;
        let about = reader.metadata();
        let size: i64 = about.row_groups().iter().map(|group| group.total_byte_size().max(0)).sum();
        if about.file_metadata().num_rows() > MOST_ROWS || size as u64 > limit {
            return Err(format!(
                "{} rows and {size} bytes of values, at most {limit} bytes are read",
                about.file_metadata().num_rows()
            ));
        }
        let rows = reader.get_row_iter(None).map_err(|e| e.to_string())?;
        rows.map(|row| row.map(|row| record(&row)).map_err(|e| e.to_string())).collect()
    };
    // The library checks what it reads; what it does not think of must not end the program.
    contain(read).and_then(|rows| rows).map_err(bad)
}

fn record(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect())
}

fn value(field: &Field) -> Value {
    let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => float(f64::from(*value)),
        Field::Double(value) => float(*value),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned().into(),
        Field::Group(row) => record(row),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let entry = |(key, field): &(Field, Field)| {
                let key = match value(key) {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                (key, value(field))
            };
            Value::Object(map.entries().iter().map(entry).collect::<Map<_, _>>())
        }
        // Dates, times and decimals as they are printed.
        other => other.to_string().into(),
    }
}
