//! Prints the wire as JSON, for `tests/drift`.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    writeln!(io::stdout(), "{}", dormouse_api::describe::describe())
}
