fn main() {
    // `sqlx::migrate!` embeds the folder and cannot see a new file by itself.
    println!("cargo:rerun-if-changed=migrations");
}
