import io.lettuce.core.RedisURI;
import io.lettuce.core.SocketOptions;
import io.lettuce.core.cluster.ClusterClientOptions;
import io.lettuce.core.cluster.ClusterTopologyRefreshOptions;
import io.lettuce.core.cluster.RedisClusterClient;
import io.lettuce.core.cluster.models.partitions.RedisClusterNode.NodeFlag;
import java.time.Duration;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Stream;

/**
 * Writes 100 keys in turns, one in 10 ms, without waiting for answers, and says when it sent which,
 * when the answer came, and how many commands were unanswered then. BenchmarkLettuceReplacedPods
 * reads that. The hook is that of examples/lettuce, beside which this is built.
 */
public final class Bench {
    public static void main(String[] args) throws InterruptedException {
        var seeds = Stream.of(System.getenv("REDIS_SEEDS").split(",")).map(s -> RedisURI.create("redis://" + s)).toList();
        var client = RedisClusterClient.create(seeds);
        var refresh = ClusterTopologyRefreshOptions.builder();
        // Since 7.0 adaptive refresh is the default.
        switch (System.getenv("REFRESH")) {
            case "off" -> refresh.disableAllAdaptiveRefreshTriggers();
            case "periodic" -> refresh.disableAllAdaptiveRefreshTriggers().enablePeriodicRefresh(Duration.ofSeconds(10));
            case "adaptive" -> refresh.enableAllAdaptiveRefreshTriggers();
            default -> throw new IllegalArgumentException("REFRESH is off, periodic or adaptive");
        }
        var options = ClusterClientOptions.builder().topologyRefreshOptions(refresh.build());
        if (System.getenv("SETTINGS").equals("example")) {
            options.socketOptions(SocketOptions.builder().connectTimeout(Duration.ofMillis(500)).build())
                .nodeFilter(node -> !node.is(NodeFlag.FAIL));
        }
        client.setOptions(options.build());
        var redis = client.connect().async();
        if (System.getenv("HOOK").equals("with")) {
            Executors.newSingleThreadExecutor().submit(() -> Example.watch(client));
        }
        var unanswered = new AtomicInteger();
        for (int i = 0; ; i = (i + 1) % 100, Thread.sleep(10)) {
            String key = "key:" + i;
            say("sent", key, unanswered.incrementAndGet());
            redis.set(key, "value").whenComplete((ok, e) -> say(e == null ? "answered" : "failed", key, unanswered.getAndDecrement()));
        }
    }

    static void say(String what, String key, int unanswered) {
        System.out.println(what + " " + key + " " + System.currentTimeMillis() + " " + unanswered);
    }
}
