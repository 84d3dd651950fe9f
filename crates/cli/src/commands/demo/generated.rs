//! Files made for the demo: a tree of many small ones and single large ones. The same
//! on every run.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Files of the tree.
pub(super) const FILES: usize = AREAS.len() * FOLDERS.len() * FILES_PER_FOLDER;
/// Size of a large file in bytes.
pub(super) const LARGE_LEN: u64 = 64 << 20;

const FILES_PER_FOLDER: usize = 50;

/// Names that programs have stumbled over.
const AREAS: [&str; 12] = [
    "photos",
    "Zdjęcia z wakacji",
    "документы",
    "写真",
    "여행 기록",
    "مستندات",
    "हिन्दी",
    "Ελληνικά",
    "עברית",
    "emoji 🌲🐿️",
    "quotes ' and \" and $HOME",
    "a line\nand another",
];

const FOLDERS: [&str; 5] = [
    "2022",
    "2023/winter",
    "2023/summer",
    "2024/deep/er",
    "ümläut",
];

/// A folder of the tree.
pub(super) fn folder(area: usize, folder: usize) -> PathBuf {
    let area = AREAS[area % AREAS.len()];
    Path::new(area).join(FOLDERS[folder % FOLDERS.len()])
}

/// An area of the tree: a folder of folders.
pub(super) fn area(area: usize) -> &'static Path {
    Path::new(AREAS[area % AREAS.len()])
}

/// A file of the tree.
pub(super) fn file(area: usize, in_folder: usize, number: usize) -> PathBuf {
    let number = number % FILES_PER_FOLDER;
    folder(area, in_folder).join(format!("note {number:02}.txt"))
}

/// What making a tree has made.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Made {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) symlinks: u64,
    pub(super) empty_dirs: u64,
}

/// Makes the tree.
pub(super) fn tree(root: &Path) -> io::Result<Made> {
    let mut made = Made::default();
    for (area, name) in AREAS.into_iter().enumerate() {
        for in_folder in 0..FOLDERS.len() {
            let dir = root.join(folder(area, in_folder));
            std::fs::create_dir_all(&dir)?;
            for number in 0..FILES_PER_FOLDER {
                let path = root.join(file(area, in_folder, number));
                let len = len_of(number);
                let seed = format!("{area}/{in_folder}/{number}");
                write_content(&path, &seed, len)?;
                if let Some(mode) = mode_of(number) {
                    std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
                }
                made.files += 1;
                made.bytes += len;
            }
            symlink("note 07.txt", dir.join("the seventh"))?;
            made.symlinks += 1;
        }
        std::fs::create_dir(root.join(name).join("nothing in here"))?;
        made.empty_dirs += 1;
        symlink("nowhere/at all", root.join(name).join("dangling"))?;
        made.symlinks += 1;
    }
    Ok(made)
}

/// Empty ones, many small ones and a few of several chunks.
fn len_of(number: usize) -> u64 {
    match number {
        0 => 0,
        1 => 200 << 10,
        _ => (number as u64 * 797) % 6_000 + 1,
    }
}

fn mode_of(number: usize) -> Option<u32> {
    match number {
        2 => Some(0o755),
        3 => Some(0o600),
        4 => Some(0o444),
        _ => None,
    }
}

/// Makes a file of [`LARGE_LEN`] bytes that no compression makes smaller.
pub(super) fn large(path: &Path, seed: &str) -> io::Result<()> {
    write_content(path, seed, LARGE_LEN)
}

fn write_content(path: &Path, seed: &str, len: u64) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(seed.as_bytes());
    let mut content = hasher.finalize_xof();
    let mut file = BufWriter::new(File::create(path)?);
    let mut buffer = vec![0; 1 << 16];
    let mut left = len;
    while left > 0 {
        let step = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let (part, _) = buffer.split_at_mut(step);
        content.fill(part);
        file.write_all(part)?;
        left -= step as u64;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_what_it_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = tree(dir.path()).expect("makes");
        assert_eq!(made.files, FILES as u64);
        assert_eq!(FILES, 3_000);
        let all = super::super::compare::Tree::read(&[("", dir.path())]).expect("reads");
        assert_eq!(all.files(), made.files);
        assert_eq!(all.bytes(), made.bytes);
    }
}
