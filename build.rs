//! Has the linker put our functions in the place of those in which librdkafka unpacks a batch: src/kafka/native/mod.rs says why. Only
//! the program itself: whoever uses the library, tests that read a topic for themselves among them, has librdkafka's own.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for function in [
        "rd_gz_decompress",
        "rd_kafka_lz4_decompress",
        "rd_kafka_zstd_decompress",
        "rd_kafka_snappy_uncompressed_length",
        "rd_kafka_snappy_uncompress",
        "rd_kafka_snappy_java_uncompress",
    ] {
        println!("cargo:rustc-link-arg-bins=-Wl,--wrap={function}");
    }
}
