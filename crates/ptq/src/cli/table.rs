//! Plain-text tables and paragraphs.

use std::fmt;

/// Columns of a terminal that text for people keeps within.
pub(super) const COLUMNS: usize = 100;

/// Rows of cells, columns as wide as they need. A column of numbers is right-aligned, any other left-aligned.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a header.
    #[must_use]
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&s| s.to_owned()).collect()] }
    }
    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
    /// Whether every cell below the header is a quantity (`12`, `3.5 MB`) or says that there is none (`-`).
    fn is_numeric(&self, column: usize) -> bool {
        let quantity = |s: &str| s == "-" || s.starts_with(|c: char| c.is_ascii_digit());
        column > 0 && self.rows.iter().skip(1).filter_map(|r| r.get(column)).all(|s| quantity(s))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
        };
        let layout: Vec<(usize, bool)> = (0..columns).map(|c| (width(c), self.is_numeric(c))).collect();
        for (i, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = layout
                .iter()
                .enumerate()
                .map(|(c, &(width, numeric))| {
                    let cell = row.get(c).map_or("", String::as_str);
                    if numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                })
                .collect();
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", cells.join("  ").trim_end())?;
            if i == 0 {
                let rule: Vec<String> = layout.iter().map(|(width, _)| "-".repeat(*width)).collect();
                write!(f, "\n{}", rule.join("  "))?;
            }
        }
        Ok(())
    }
}

/// Text broken at spaces to fit [`COLUMNS`], every line after `indent` spaces.
pub(super) fn paragraph(text: &str, indent: usize) -> String {
    let margin = " ".repeat(indent);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let length = indent + line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && length > COLUMNS {
            lines.push(format!("{margin}{line}"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines.push(format!("{margin}{line}"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_to_the_right_words_to_the_left() {
        let mut table = Table::new(&["linear", "scheme", "bits", "size"]);
        table.row(vec!["q".into(), "W8A8".into(), "8.25".into(), "1.2 MB".into()]);
        table.row(vec!["down_proj".into(), "float".into(), "16".into(), "-".into()]);
        let expected = "linear     scheme  bits    size\n---------  ------  ----  ------\n\
                        q          W8A8    8.25  1.2 MB\ndown_proj  float     16       -";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn paragraphs_fit() {
        let text = "word ".repeat(60);
        let broken = paragraph(&text, 4);
        assert!(broken.lines().count() > 1);
        assert!(
            broken.lines().all(|l| l.starts_with("    word") && l.chars().count() <= COLUMNS),
            "{broken}"
        );
        assert_eq!(paragraph("a  b", 2), "  a b");
    }
}
