#![no_main]

use hapax_fuzz::fingerprint::properties::hold_for_texts;
use libfuzzer_sys::fuzz_target;

// The byte FF, which no text in UTF-8 contains, separates two texts.
fuzz_target!(|input: &[u8]| {
    let mut texts = input.splitn(2, |byte| *byte == 0xff);
    let first = texts.next().unwrap_or_default();
    hold_for_texts(first, texts.next().unwrap_or(first), input);
});
