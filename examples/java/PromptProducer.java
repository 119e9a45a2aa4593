import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Future;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.avro.Schema;
import org.apache.avro.SchemaNormalization;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericDatumWriter;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.io.BinaryEncoder;
import org.apache.avro.io.EncoderFactory;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Requests images. Needs kafka-clients and avro; see pom.xml.
 *
 * <pre>PromptProducer BOOTSTRAP_SERVERS TOPIC SCHEMA_FILE REGISTRY_URL|- SIDE PROMPT...</pre>
 *
 * With "-" for the registry, values are in Avro single-object encoding; otherwise in Confluent's framing, with
 * the schema's id in the registry. Request ids are printed to standard output.
 */
public final class PromptProducer {

    public static void main(String[] args) throws Exception {
        if (args.length == 2 && args[0].equals("fingerprint")) {
            byte[] fingerprint = SchemaNormalization.parsingFingerprint("CRC-64-AVRO", schema(args[1]));
            System.out.println(java.util.HexFormat.of().formatHex(fingerprint));
            return;
        }
        if (args.length < 6) {
            System.err.println("usage: PromptProducer SERVERS TOPIC SCHEMA_FILE REGISTRY_URL|- SIDE PROMPT...");
            System.exit(2);
        }
        String topic = args[1];
        Schema schema = schema(args[2]);
        Integer id = args[3].equals("-") ? null : schemaId(args[3], topic, schema);

        Properties properties = new Properties();
        properties.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        properties.put(ProducerConfig.ACKS_CONFIG, "all");
        properties.put(ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG, true);
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        List<String> ids = new ArrayList<>();
        try (var producer = new KafkaProducer<>(properties, new StringSerializer(), new ByteArraySerializer())) {
            for (int i = 5; i < args.length; i++) {
                String requestId = UUID.randomUUID().toString();
                // Fields that are not set take the schema's defaults.
                GenericData.Record request = new GenericRecordBuilder(schema)
                        .set("request_id", requestId)
                        .set("prompt", args[i])
                        .set("width", Integer.parseInt(args[4]))
                        .set("height", Integer.parseInt(args[4]))
                        .set("created_at", System.currentTimeMillis())
                        .build();
                byte[] value = id == null ? singleObject(schema, request) : confluent(schema, id, request);
                var record = new ProducerRecord<>(topic, requestId, value);
                header(record, "ce_specversion", "1.0");
                header(record, "ce_id", requestId);
                header(record, "ce_source", "/examples/java");
                header(record, "ce_type", "zimage.PromptRequest.v1");
                header(record, "ce_time", Instant.now().toString());
                header(record, "content-type", "application/avro");
                sent.add(producer.send(record));
                ids.add(requestId);
            }
            for (int i = 0; i < sent.size(); i++) {
                sent.get(i).get();
                System.out.println(ids.get(i));
            }
        }
    }

    private static Schema schema(String file) throws Exception {
        return new Schema.Parser().parse(Files.readString(Path.of(file)));
    }

    private static byte[] singleObject(Schema schema, GenericRecord request) throws Exception {
        ByteBuffer encoded = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema).encode(request);
        byte[] value = new byte[encoded.remaining()];
        encoded.get(value);
        return value;
    }

    private static byte[] confluent(Schema schema, int id, GenericRecord request) throws Exception {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.write(ByteBuffer.allocate(5).put((byte) 0).putInt(id).array());
        BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(out, null);
        new GenericDatumWriter<GenericRecord>(schema).write(request, encoder);
        encoder.flush();
        return out.toByteArray();
    }

    /** Registers the schema under the topic's subject, and returns its id, new or existing. */
    private static int schemaId(String registry, String topic, Schema schema) throws Exception {
        String body = "{\"schema\": \"" + schema.toString().replace("\\", "\\\\").replace("\"", "\\\"") + "\"}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(registry + "/subjects/" + topic + "-value/versions"))
                .timeout(Duration.ofSeconds(10))
                .header("Content-Type", "application/vnd.schemaregistry.v1+json")
                .POST(HttpRequest.BodyPublishers.ofString(body, StandardCharsets.UTF_8))
                .build();
        HttpResponse<String> answer =
                HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        Matcher id = Pattern.compile("\"id\"\\s*:\\s*(\\d+)").matcher(answer.body());
        if (answer.statusCode() != 200 || !id.find()) {
            throw new IllegalStateException("the registry answered " + answer.statusCode() + ": " + answer.body());
        }
        return Integer.parseInt(id.group(1));
    }

    private static void header(ProducerRecord<?, ?> record, String name, String value) {
        record.headers().add(name, value.getBytes(StandardCharsets.UTF_8));
    }
}
