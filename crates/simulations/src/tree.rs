//! Trees of files to measure with, from a seed.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// Makes `count` files of `size` random bytes, 500 to a directory.
///
/// # Errors
/// Whatever the disk says.
pub fn small_files(dir: &Path, count: usize, size: usize, seed: u64) -> Result<()> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut bytes = vec![0; size];
    for number in 0..count {
        let dir = dir.join(format!("d{:03}", number / 500));
        if number % 500 == 0 {
            std::fs::create_dir_all(&dir)?;
        }
        rng.fill_bytes(&mut bytes);
        std::fs::write(dir.join(format!("f{number:06}")), &bytes)?;
    }
    Ok(())
}

/// Makes one file of `size` random bytes.
///
/// # Errors
/// Whatever the disk says.
pub fn large_file(path: &Path, size: u64, seed: u64) -> Result<()> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut bytes = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        rng.fill_bytes(&mut bytes);
        let now = usize::try_from(left.min(bytes.len() as u64))?;
        file.write_all(bytes.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    file.flush()?;
    Ok(())
}

/// Fails unless both directories hold the same, byte for byte.
///
/// # Errors
/// The first difference.
pub fn same(a: &Path, b: &Path) -> Result<()> {
    let output = std::process::Command::new("diff")
        .arg("-r")
        .arg(a)
        .arg(b)
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        bail!(
            "the trees differ: {}",
            text.lines().next().unwrap_or("unreadable")
        );
    }
    Ok(())
}
