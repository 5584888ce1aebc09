use std::error::Error;
use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

fn main() -> Result<(), Box<dyn Error>> {
    // `sqlx::migrate!` reads these, but cargo does not notice their changes.
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=sqlx.toml");
    println!("cargo:rerun-if-changed=build.rs");
    unpack_swagger_ui(&PathBuf::from(std::env::var("OUT_DIR")?))
}

/// Unpacks the files of Swagger UI that `/docs` serves, plain and compressed, and passes its version on. ADR 0011 says
/// where the archive comes from.
fn unpack_swagger_ui(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    // The archive has one folder, such as `swagger-ui-5.32.6/`.
    let first = archive.file_names().next().ok_or("the archive is empty")??;
    let root = first.split('/').next().unwrap_or_default().to_owned();
    let version = root.strip_prefix("swagger-ui-").ok_or("the archive's folder does not name the version")?;
    println!("cargo:rustc-env=SWAGGER_UI_VERSION={version}");
    for name in ["swagger-ui.css", "swagger-ui-bundle.js"] {
        let mut plain = Vec::new();
        archive.by_name(&format!("{root}/dist/{name}"))?.read_to_end(&mut plain)?;
        std::fs::write(folder.join(name), &plain)?;
        let compressed = File::create(folder.join(format!("{name}.gz")))?;
        // Without a time, so that builds are reproducible.
        let mut compressed = GzBuilder::new().mtime(0).write(compressed, Compression::best());
        compressed.write_all(&plain)?;
        compressed.finish()?;
    }
    Ok(())
}
