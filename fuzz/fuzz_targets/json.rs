#![no_main]

use hapax_fuzz::json::properties::hold_for_text;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| hold_for_text(text));
