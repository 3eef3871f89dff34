//! What tells plans and models apart, and how a difference is told.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::layout::Column;

/// Names and values that tell plans and models apart.
pub type Fingerprints = BTreeMap<String, String>;

/// Longest value that a message shows in full.
const LONGEST: usize = 60;

/// Checks that rows with these columns may be used with the store at `path`.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference in names, specs, widths or number.
pub fn check_same_columns(path: &Path, stored: &[Column], given: &[Column]) -> Result<()> {
    same(path, column_difference(stored, given))
}

/// Checks that rows with these fingerprints may be used with the store at `path`.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference.
pub fn check_same_fingerprints(
    path: &Path,
    stored: &Fingerprints,
    given: &Fingerprints,
) -> Result<()> {
    let mut names = stored.keys().chain(given.keys());
    let differs = names.find(|name| stored.get(*name) != given.get(*name));
    let words = |value: Option<&String>| value.map_or("none".to_owned(), String::clone);
    let difference = differs.map(|name| {
        let (stored, given) = (words(stored.get(name)), words(given.get(name)));
        format!("fingerprint {name:?}: {stored} in the store, {given} given")
    });
    same(path, difference)
}

/// No difference is fine, any is an error.
pub(crate) fn same(path: &Path, difference: Option<String>) -> Result<()> {
    match difference {
        None => Ok(()),
        Some(difference) => Err(Error::Mismatch {
            path: path.to_path_buf(),
            difference,
        }),
    }
}

fn column_difference(stored: &[Column], given: &[Column]) -> Option<String> {
    for (index, (stored, given)) in stored.iter().zip(given).enumerate() {
        let name = &stored.name;
        if *name != given.name {
            return Some(format!(
                "column {index}: {name:?} in the store, {:?} given",
                given.name
            ));
        }
        if let Some(difference) = first_difference("", &stored.spec, &given.spec) {
            return Some(format!("column {name:?}: {difference}"));
        }
        if stored.width != given.width {
            let (stored, given) = (stored.width, given.width);
            return Some(format!(
                "column {name:?}: width {stored} in the store, {given} given"
            ));
        }
    }
    if stored.len() == given.len() {
        return None;
    }
    let more = stored.get(given.len()).or_else(|| given.get(stored.len()));
    let name = more.map_or("", |column| column.name.as_str());
    Some(format!(
        "{} columns in the store, {} given, the first without a partner is {name:?}",
        stored.len(),
        given.len()
    ))
}

/// The first key in which two JSON values differ, with both sides.
fn first_difference(path: &str, stored: &Value, given: &Value) -> Option<String> {
    if let (Value::Object(left), Value::Object(right)) = (stored, given) {
        let mut keys = left.keys().chain(right.keys());
        let key = keys.find(|key| left.get(*key) != right.get(*key))?;
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        let side = |value: Option<&Value>| value.cloned().unwrap_or_default();
        return first_difference(&path, &side(left.get(key)), &side(right.get(key)));
    }
    let (left, right) = (brief(stored), brief(given));
    (stored != given).then(|| format!("{path} {left} in the store, {right} given"))
}

/// A JSON value, cut where it is too long for a message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
