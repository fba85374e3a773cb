//! Any JSON value into any type: no panic, one field with its true length or nothing at all, and for the plain types the
//! value that serde_json reads. tests/copy_round_trip.rs compares all types with the server itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use serde_json::value::RawValue;

use rowmill::decode::value::read::{Json, Reading};
use rowmill::decode::value::take::from_json;
use rowmill::model::notation::Notation;
use rowmill::model::types::{Encoding, NumericLimit, Type};

fn types() -> Vec<Type> {
    let array = |element, element_oid| Type::Array { element: Box::new(element), element_oid };
    vec![
        Type::Bool,
        Type::Int2,
        Type::Int4,
        Type::Int8,
        Type::Float4,
        Type::Float8,
        Type::Numeric(None),
        Type::Numeric(Some(NumericLimit { precision: 5, scale: 2 })),
        Type::Text,
        Type::Varchar(Some(5)),
        Type::Char(Some(5)),
        Type::Timestamptz,
        Type::Timestamp,
        Type::Date,
        Type::Time,
        Type::Uuid,
        Type::Json,
        Type::Jsonb,
        Type::Bytea,
        Type::Inet,
        array(Type::Int8, 20),
        array(Type::Numeric(None), 1700),
        array(Type::Text, 25),
        array(Type::Jsonb, 3802),
    ]
}

fuzz_target!(|input: (u8, u8, &str)| {
    let (which, encoding, raw) = input;
    if serde_json::from_str::<&RawValue>(raw).is_err() {
        return;
    }
    let raw = raw.trim_matches([' ', '\t', '\r', '\n']);
    let types = types();
    let ty = &types[usize::from(which) % types.len()];
    let encoding = match encoding % 4 {
        0 => Encoding::Postgres,
        1 => Encoding::Hex,
        2 => Encoding::Base64,
        _ => Encoding::Utf8,
    };
    let (mut scratch, mut out) = (String::new(), Vec::new());
    let reading = Reading::new(Notation { encoding, ..Notation::default() }, 128);
    if raw == "null" || from_json(ty, &reading, Json::of(raw), &mut scratch, &mut out).is_err() {
        return;
    }
    let (length, field) = out.split_first_chunk().expect("a length");
    assert_eq!(i32::from_be_bytes(*length) as usize, field.len(), "{ty} from {raw}");
    let Ok(value) = serde_json::from_str::<Value>(raw) else { return };
    match (ty, value) {
        (Type::Bool, value) => assert_eq!(value, Value::Bool(field == [1])),
        (Type::Int8, Value::Number(number)) if number.is_i64() => {
            assert_eq!(number.as_i64().map(i64::to_be_bytes).as_ref().map(|b| &b[..]), Some(field));
        }
        (Type::Float8, Value::Number(number)) => {
            let found = f64::from_be_bytes(field.try_into().expect("eight bytes"));
            assert_eq!(Some(found), number.as_f64(), "{raw}");
        }
        (Type::Text | Type::Varchar(_) | Type::Char(_), Value::String(text)) => {
            assert_eq!(field, text.as_bytes());
        }
        _ => {}
    }
});
