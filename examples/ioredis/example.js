// Writes to a Redis Cluster, and learns its new topology as soon as redisguard tells of it.
import http from "node:http";
import readline from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Cluster } from "ioredis";

const socketPath = process.env.REDISGUARD_SOCKET || "/run/redisguard/redisguard.sock";
const types = ["primary.changed", "slots.changed", "node.moved", "node.replaced"];

const seeds = process.env.REDIS_SEEDS.split(",").map((s) => ({ host: s.split(":")[0], port: +s.split(":")[1] }));
const redis = new Cluster(seeds, {
  slotsRefreshTimeout: 500, // a refresh asks one node after the other, and the dead one may be the first
  redisOptions: { connectTimeout: 500, commandTimeout: 1000 },
});
redis.on("error", (e) => console.log("cluster", e.message));
const refresh = promisify(redis.refreshSlotsCache.bind(redis));

function get(path) {
  return new Promise((resolve, reject) => {
    const request = http.get({ socketPath, path, headers: { Host: "redisguard" } }, resolve);
    request.on("error", reject);
    request.setTimeout(45000, () => request.destroy(new Error("silence"))); // a heartbeat comes every 15 s
  });
}

async function watch() {
  let cursor = "";
  for (let pause = 100; ; pause = Math.min(2 * pause, 5000)) {
    try {
      const answer = await get(`/v1/events?type=${types}&after=${cursor}`);
      if (answer.statusCode === 410) cursor = ""; // what came after it is lost: begin anew
      if (answer.statusCode !== 200) answer.resume();
      else
        for await (const line of readline.createInterface({ input: answer })) {
          const event = JSON.parse(line);
          pause = 100;
          // "synced" ends the beginning of a stream without cursor, before which something
          // may have been missed.
          if (types.includes(event.type) || (event.type === "synced" && !cursor)) {
            await refresh();
            console.log("refreshed", event.type);
          }
          cursor = event.cursor ?? cursor; // only now: if the refresh failed, the event comes again
        }
    } catch (e) {
      console.log("watch", e.message); // redisguard is not there: go on without
    }
    await sleep(pause * (1 + Math.random() / 2));
  }
}

watch();
for (let i = 0; ; i = (i + 1) % 100) {
  redis.set(`key:${i}`, Date.now()).then(
    () => console.log(`ok key:${i}`),
    (e) => console.log(`error key:${i}`, e.message),
  );
  await sleep(10);
}
