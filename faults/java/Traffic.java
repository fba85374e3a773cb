// The campaign's producer and its ground truth, through Kafka's own Java client: nothing here shares code with rowmill or
// with librdkafka. Each record carries in a header what must become of it; what is true is what a read-committed consumer
// finds in the log afterwards, never what the producer believes.
//
//   stack/java faults/java/Traffic.java produce BROKERS PREFIX SEED RATE     until standard input ends
//   stack/java faults/java/Traffic.java bomb BROKERS PREFIX SEED             one record that unpacks to a thousand times its size
//   stack/java faults/java/Traffic.java read BROKERS PREFIX FILE             topic, partition, offset, fate, md5 of the value

import java.io.BufferedWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Traffic {
    static final AtomicLong number = new AtomicLong();
    static final AtomicLong acked = new AtomicLong();
    static final AtomicLong failed = new AtomicLong();
    static final AtomicLong aborted = new AtomicLong();
    static final AtomicBoolean stopping = new AtomicBoolean();

    public static void main(String[] a) throws Exception {
        switch (a[0]) {
            case "produce" -> produce(a[1], a[2], Long.parseLong(a[3]), Integer.parseInt(a[4]));
            case "bomb" -> bomb(a[1], a[2], Long.parseLong(a[3]));
            case "read" -> read(a[1], a[2], Path.of(a[3]));
            default -> throw new IllegalArgumentException("produce, bomb or read, not " + a[0]);
        }
    }

    // ---- what is sent ----

    /** A record and what must become of it: row:TABLE:n:word, dead:TABLE, skip, or aborted. */
    record Piece(byte[] value, String fate) {}

    static Piece piece(String topic, Random random) {
        long n = number.incrementAndGet();
        boolean toU = topic.equals("fan") && random.nextBoolean();
        String table = switch (topic) {
            case "one" -> "t1";
            case "two" -> "t2";
            default -> toU ? "t4" : "t3";
        };
        String home = topic.equals("fan") ? "t3" : table;
        String kind = toU ? "u" : "t";
        String word = topic.equals("two") ? "k" + n % 200 : "w" + n % 1000;
        String stored = topic.equals("two") ? "user-" + word : word;
        String good = "{\"kind\":\"" + kind + "\",\"n\":" + n + ",\"word\":\"" + word + "\",\"pad\":\""
            + "x".repeat(random.nextInt(120)) + "\"}";
        return switch (random.nextInt(1000)) {
            case 0, 1 -> new Piece(null, "skip");
            case 2, 3 -> new Piece(bytes("{\"kind\":\"" + kind + "\",\"n\":" + n), "dead:" + home);
            case 4 -> new Piece(new byte[] {(byte) 0xff, 0, 1}, "dead:" + home);
            case 5, 6 -> new Piece(bytes("{\"kind\":\"" + kind + "\",\"word\":\"" + word + "\"}"), "dead:" + table);
            // The table's own CHECK refuses these: only the server can tell.
            case 7 -> new Piece(bytes(good.replace("\"n\":" + n, "\"n\":-" + n)), "dead:" + table);
            default -> new Piece(bytes(good), "row:" + table + ":" + n + ":" + stored);
        };
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static ProducerRecord<byte[], byte[]> record(String topic, int partition, Piece piece) {
        var record = new ProducerRecord<byte[], byte[]>(topic, partition, null, piece.value());
        record.headers().add(new RecordHeader("fate", bytes(piece.fate())));
        return record;
    }

    // ---- producing ----

    static void produce(String brokers, String prefix, long seed, int rate) throws Exception {
        var threads = List.of(
            new Thread(() -> steady(brokers, prefix, "one", new Random(seed), rate * 2 / 5)),
            new Thread(() -> steady(brokers, prefix, "fan", new Random(seed + 1), rate * 2 / 5)),
            new Thread(() -> transactions(brokers, prefix + "two", new Random(seed + 2), rate / 5)));
        threads.forEach(Thread::start);
        var end = new Thread(() -> {
            try {
                while (System.in.read() >= 0) { }
            } catch (java.io.IOException closed) {
                // The campaign is gone: stop as well.
            }
            stopping.set(true);
        });
        end.setDaemon(true);
        end.start();
        while (threads.stream().anyMatch(Thread::isAlive)) {
            Thread.sleep(1000);
            tell();
        }
        tell();
    }

    static void tell() {
        System.out.println(acked + " " + aborted + " " + failed);
        System.out.flush();
    }

    static KafkaProducer<byte[], byte[]> producer(String brokers, String transactionalId) {
        var settings = new Properties();
        settings.put("bootstrap.servers", brokers);
        settings.put("acks", "all");
        settings.put("enable.idempotence", "true");
        settings.put("linger.ms", "5");
        settings.put("compression.type", transactionalId == null ? "zstd" : "lz4");
        settings.put("metadata.max.age.ms", "2000");
        settings.put("delivery.timeout.ms", "60000");
        settings.put("request.timeout.ms", "10000");
        settings.put("max.block.ms", "60000");
        if (transactionalId != null) {
            settings.put("transactional.id", transactionalId);
            settings.put("transaction.timeout.ms", "15000");
        }
        return new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
    }

    /** More than rowmill takes of one record, and six times what three processes together may hold of all. */
    static final int BOMB_BYTES = 48 << 20;

    /** Says where it went. */
    static void bomb(String brokers, String prefix, long seed) throws Exception {
        var settings = new Properties();
        settings.put("bootstrap.servers", brokers);
        settings.put("acks", "all");
        settings.put("compression.type", "gzip");
        settings.put("max.request.size", BOMB_BYTES + 1_000_000);
        settings.put("buffer.memory", BOMB_BYTES + 2_000_000);
        settings.put("max.block.ms", "60000");
        byte[] value = new byte[BOMB_BYTES];
        java.util.Arrays.fill(value, (byte) ' ');
        byte[] good = bytes("{\"kind\":\"t\",\"n\":1,\"word\":\"w\"}");
        System.arraycopy(good, 0, value, 0, good.length);
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            int partitions = producer.partitionsFor(prefix + "one").size();
            int partition = new Random(seed).nextInt(partitions);
            var sent = producer.send(record(prefix + "one", partition, new Piece(value, "bomb:t1"))).get();
            System.out.println(sent.partition() + " " + sent.offset());
        }
    }

    static void steady(String brokers, String prefix, String name, Random random, int rate) {
        String topic = prefix + name;
        KafkaProducer<byte[], byte[]> producer = producer(brokers, null);
        long start = System.nanoTime();
        long sent = 0;
        while (!stopping.get()) {
            long due = (System.nanoTime() - start) / 1_000_000 * rate / 1000;
            try {
                int partitions = producer.partitionsFor(topic).size();
                for (; sent < due && !stopping.get(); sent++) {
                    producer.send(record(topic, random.nextInt(partitions), piece(name, random)),
                        (metadata, error) -> (error == null ? acked : failed).incrementAndGet());
                }
            } catch (RuntimeException error) {
                // A broker that is away for long, or an idempotent producer that lost its place: begin anew.
                producer.close(Duration.ofSeconds(1));
                producer = producer(brokers, null);
            }
            pause(10);
        }
        producer.close(Duration.ofSeconds(60));
    }

    static void transactions(String brokers, String topic, Random random, int rate) {
        KafkaProducer<byte[], byte[]> producer = null;
        while (!stopping.get()) {
            try {
                if (producer == null) {
                    producer = producer(brokers, topic);
                    producer.initTransactions();
                }
                transaction(producer, topic, random, rate);
            } catch (RuntimeException error) {
                // Whatever became of it, the log says afterwards.
                if (producer != null) {
                    producer.close(Duration.ofSeconds(1));
                }
                producer = null;
                pause(500);
            }
        }
        if (producer != null) {
            producer.close(Duration.ofSeconds(60));
        }
    }

    static void transaction(KafkaProducer<byte[], byte[]> producer, String topic, Random random, int rate) {
        long start = System.nanoTime();
        int count = 20 + random.nextInt(300);
        boolean abort = random.nextInt(4) == 0;
        int partitions = producer.partitionsFor(topic).size();
        producer.beginTransaction();
        for (int i = 0; i < count; i++) {
            Piece piece = piece("two", random);
            if (abort) {
                piece = new Piece(piece.value(), "aborted");
            }
            producer.send(record(topic, random.nextInt(partitions), piece));
        }
        if (random.nextInt(20) == 0) {
            pause(2000);
        }
        if (abort) {
            producer.flush();
            producer.abortTransaction();
            aborted.addAndGet(count);
        } else {
            producer.commitTransaction();
            acked.addAndGet(count);
        }
        pause(count * 1000L / rate - (System.nanoTime() - start) / 1_000_000);
    }

    static void pause(long ms) {
        try {
            Thread.sleep(Math.max(0, ms));
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    // ---- the truth ----

    static void read(String brokers, String prefix, Path file) throws Exception {
        var settings = new Properties();
        settings.put("bootstrap.servers", brokers);
        settings.put("isolation.level", "read_committed");
        settings.put("enable.auto.commit", "false");
        settings.put("max.poll.records", "5000");
        try (var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
             BufferedWriter out = Files.newBufferedWriter(file)) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (String name : List.of("one", "two", "fan")) {
                consumer.partitionsFor(prefix + name).forEach(p -> partitions.add(new TopicPartition(p.topic(), p.partition())));
            }
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = new HashMap<>(consumer.endOffsets(partitions));
            MessageDigest md5 = MessageDigest.getInstance("MD5");
            while (!ends.isEmpty()) {
                for (var record : consumer.poll(Duration.ofMillis(500))) {
                    String fate = new String(record.headers().lastHeader("fate").value(), StandardCharsets.UTF_8);
                    byte[] value = record.value();
                    if (fate.startsWith("bomb")) {
                        // Only the beginning of it is kept.
                        value = java.util.Arrays.copyOf(value, 1024);
                        fate = fate.replace("bomb", "dead");
                    }
                    String sum = value == null ? "-" : HexFormat.of().formatHex(md5.digest(value));
                    out.write(record.topic() + "\t" + record.partition() + "\t" + record.offset() + "\t" + fate + "\t"
                        + (fate.startsWith("dead") ? sum : "-") + "\n");
                }
                ends.entrySet().removeIf(e -> consumer.position(e.getKey()) >= e.getValue());
            }
        }
    }
}
