//! What a person meant who wrote a word that is not known.

/// The known word with the fewest edits, if it is close enough to be meant.
///
/// ```
/// assert_eq!(quant_core::nearest("gptk", &["awq", "gptq"]), Some("gptq"));
/// assert_eq!(quant_core::nearest("smooth", &["awq", "gptq"]), None);
/// ```
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let fold = |s: &str| s.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|k| (edits(&fold(word), &fold(k)), *k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 3)
        .map(|(_, k)| k)
}

/// What is said of it behind an unknown word: the nearest known one, or nothing.
///
/// ```
/// assert_eq!(quant_core::meant("gptk", &["awq", "gptq"]), " (did you mean \"gptq\"?)");
/// assert_eq!(quant_core::meant("smooth", &["awq", "gptq"]), "");
/// ```
#[must_use]
pub fn meant(word: &str, known: &[&str]) -> String {
    nearest(word, known).map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
