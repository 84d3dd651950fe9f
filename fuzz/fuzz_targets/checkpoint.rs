#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pacsync_fuzz::checkpoint(data));
