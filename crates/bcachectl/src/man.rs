//! The man pages: what the parser knows, and the sections that have to be written.

use std::path::Path;

use anyhow::{Context, Result};

/// Writes all pages to `folder`.
pub fn write(folder: &Path) -> Result<()> {
    for (name, page) in pages()? {
        let path = folder.join(&name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// All pages, by file name.
pub fn pages() -> Result<Vec<(String, Vec<u8>)>> {
    Ok(Vec::new())
}
