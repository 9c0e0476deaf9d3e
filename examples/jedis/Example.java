import com.google.gson.JsonParser;
import java.io.*;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.*;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import redis.clients.jedis.*;

/** Writes to a Redis Cluster, and learns its new topology as soon as redisguard tells of it. */
public final class Example {
    static final String SOCKET = System.getenv().getOrDefault("REDISGUARD_SOCKET", "/run/redisguard/redisguard.sock");
    static final String TYPES = "primary.changed,slots.changed,node.moved,node.replaced";

    public static void main(String[] args) throws InterruptedException {
        var seeds = Stream.of(System.getenv("REDIS_SEEDS").split(",")).map(HostAndPort::from).collect(Collectors.toSet());
        // A refresh asks one node after the other, and the dead one may be the first.
        var config = DefaultJedisClientConfig.builder().connectionTimeoutMillis(500).socketTimeoutMillis(1000).build();
        RedisClusterClient redis = RedisClusterClient.builder().nodes(seeds).clientConfig(config).build();
        Executors.newSingleThreadExecutor().submit(() -> watch(redis));
        for (int i = 0; ; i = (i + 1) % 100, Thread.sleep(10)) {
            try {
                redis.set("key:" + i, "value");
                System.out.println("ok key:" + i);
            } catch (RuntimeException e) {
                System.out.println("error " + e + " key:" + i);
            }
        }
    }

    static Void watch(RedisClusterClient redis) throws InterruptedException {
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
                        redis.refreshClusterTopology();
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
