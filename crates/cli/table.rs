//! Aligned tables.

use std::fmt;
use unicode_width::UnicodeWidthStr;

/// The width that tables keep to.
pub(crate) const WIDTH: usize = 100;

const GAP: &str = "  ";

/// How a column lines up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table with a line of headings. Displayed without a newline at its end.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
    shrinking: Option<usize>,
}

impl Table {
    /// No rows yet. A heading that starts with `>` stands over a column that is aligned to the right.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        let column = |heading: &'static str| match heading.strip_prefix('>') {
            Some(heading) => (heading, Align::Right),
            None => (heading, Align::Left),
        };
        Self { columns: headings.iter().copied().map(column).collect(), rows: Vec::new(), shrinking: None }
    }

    /// Lets a column give way, its cells shortened in the middle, where the table would exceed [`WIDTH`].
    pub(crate) fn shrinking(self, column: usize) -> Self {
        Self { shrinking: Some(column), ..self }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    fn widths(&self) -> Vec<usize> {
        let cells = |i: usize| self.rows.iter().map(move |row| row[i].width());
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, (heading, _))| cells(i).max().unwrap_or(0).max(heading.width()))
            .collect();
        if let Some(column) = self.shrinking {
            let total = widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1);
            let least = self.columns[column].0.width().max(12);
            widths[column] = widths[column].saturating_sub(total.saturating_sub(WIDTH)).max(least);
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let line = |cells: Vec<&str>| {
            let mut line = String::new();
            for ((cell, (_, align)), &width) in cells.into_iter().zip(&self.columns).zip(&widths) {
                let cell = shorten(cell, width);
                let blank = " ".repeat(width.saturating_sub(cell.width()));
                match align {
                    Align::Left => line.extend([cell.as_str(), &blank, GAP]),
                    Align::Right => line.extend([blank.as_str(), &cell, GAP]),
                }
            }
            line.trim_end().to_string()
        };
        f.write_str(&line(self.columns.iter().map(|(heading, _)| *heading).collect()))?;
        let total = widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1);
        write!(f, "\n{}", "─".repeat(total))?;
        for row in &self.rows {
            write!(f, "\n{}", line(row.iter().map(String::as_str).collect()))?;
        }
        Ok(())
    }
}

/// `text` with its middle replaced by `…` if it is wider than `width`. The end, which tells layers and files
/// apart, keeps the larger share.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_string();
    }
    let chars: Vec<char> = text.chars().collect();
    let kept = width.saturating_sub(1);
    let head = kept / 3;
    let start: String = chars[..head].iter().collect();
    let end: String = chars[chars.len() - (kept - head)..].iter().collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", ">n"]);
        table.row(["a".into(), "1".into()]);
        table.row(["long name".into(), "1,000".into()]);
        let expected = "name           n\n────────────────\na              1\nlong name  1,000";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_long_cell_gives_way() {
        let mut table = Table::new(&["name", "rest"]).shrinking(0);
        table.row([format!("features.{}.conv2", "x".repeat(100)), "y".repeat(60)]);
        let text = table.to_string();
        assert!(text.lines().all(|line| line.width() == WIDTH || line.starts_with("name")), "{text}");
        assert!(text.contains("features.xxx…") || text.contains("…"), "{text}");
        assert!(text.contains(".conv2"), "{text}");
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(shorten("abcdefghij", 7), "ab…ghij");
    }
}
