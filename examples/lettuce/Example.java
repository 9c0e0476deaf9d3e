import com.google.gson.JsonParser;
import io.lettuce.core.*;
import io.lettuce.core.cluster.*;
import io.lettuce.core.cluster.models.partitions.RedisClusterNode.NodeFlag;
import java.io.*;
import java.net.URI;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.*;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.concurrent.Executors;

/** Writes to a Redis Cluster, and learns its new topology as soon as redisguard tells of it. */
public final class Example {
    static final String SOCKET = System.getenv().getOrDefault("REDISGUARD_SOCKET", "/run/redisguard/redisguard.sock");
    static final String TYPES = "primary.changed,slots.changed,node.moved,node.replaced";

    public static void main(String[] args) throws InterruptedException {
        var client = RedisClusterClient.create(RedisClusterURIUtil.toRedisURIs(URI.create("redis://" + System.getenv("REDIS_SEEDS"))));
        client.setOptions(ClusterClientOptions.builder()
            // A refresh asks all nodes and waits for each of them: for a dead one 10 s by default.
            .socketOptions(SocketOptions.builder().connectTimeout(Duration.ofMillis(500)).build())
            // What is queued for a node that is left out goes to who has its slots now.
            .nodeFilter(node -> !node.is(NodeFlag.FAIL))
            .timeoutOptions(TimeoutOptions.enabled(Duration.ofSeconds(1))).build());
        var redis = client.connect().async();
        Executors.newSingleThreadExecutor().submit(() -> watch(client));
        for (int i = 0; ; i = (i + 1) % 100, Thread.sleep(10)) {
            String key = "key:" + i;
            redis.set(key, "value").whenComplete((ok, e) -> System.out.println((e == null ? "ok " : "error " + e + " ") + key));
        }
    }

    static Void watch(RedisClusterClient client) throws InterruptedException {
        String cursor = "";
        for (long pause = 100; ; pause = Math.min(2 * pause, 5000), Thread.sleep((long) (pause * (0.5 + Math.random())))) {
            try (SocketChannel stream = SocketChannel.open(UnixDomainSocketAddress.of(SOCKET))) {
                String path = "/v1/events?type=" + TYPES + "&after=" + cursor;
                stream.write(StandardCharsets.UTF_8.encode("GET " + path + " HTTP/1.0\r\nHost: redisguard\r\n\r\n"));
                BufferedReader in = new BufferedReader(Channels.newReader(stream, StandardCharsets.UTF_8));
                String status = in.readLine();
                if (status.contains(" 410 ")) cursor = ""; // what came after it is lost: begin anew
                for (String line; status.contains(" 200 ") && (line = in.readLine()) != null; ) {
                    if (!line.startsWith("{")) continue; // of the header
                    var event = JsonParser.parseString(line).getAsJsonObject();
                    String type = event.get("type").getAsString();
                    pause = 100;
                    // "synced" ends the beginning of a stream without cursor; something may have been missed before.
                    if (TYPES.contains(type) || type.equals("synced") && cursor.isEmpty()) {
                        client.refreshPartitions();
                        System.out.println("refreshed " + type);
                    }
                    if (event.has("cursor")) cursor = event.get("cursor").getAsString(); // only now: else it comes again
                }
            } catch (IOException | RuntimeException e) {
                System.out.println("watch " + e); // redisguard is not there: go on without
            }
        }
    }
}
