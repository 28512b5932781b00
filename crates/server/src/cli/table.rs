//! Columns for people.

/// Lines whose columns stand below each other; numbers, told by their first digit, to the right.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| cells(column).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    // The first row names the columns.
    let is_number = |column: usize| {
        cells(column)
            .skip(1)
            .all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()))
    };
    let numbers: Vec<bool> = (0..columns)
        .map(|column| rows.len() > 1 && is_number(column))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            match numbers[column] {
                true => line.push_str(&format!("{space}{cell}")),
                false => line.push_str(&format!("{cell}{space}")),
            }
            line.push_str("   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size as people read it.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value >= 10.0 || value == 0.0 {
        true => format!("{value:.0} {}", UNITS[unit]),
        false => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [
            row(["KIND", "COUNT", "STATE"]),
            row(["build cache", "12", "x"]),
            row(["images", "3", ""]),
        ];
        assert_eq!(
            table(&rows),
            "KIND          COUNT   STATE\nbuild cache      12   x\nimages            3\n"
        );
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn sizes_have_two_figures_or_more() {
        for (bytes, text) in [
            (0, "0 KiB"),
            (512, "0.5 KiB"),
            (4096, "4.0 KiB"),
            (900 << 10, "900 KiB"),
            (1000 << 10, "1.0 MiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
