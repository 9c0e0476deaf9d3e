"""Writes to a Redis Cluster, and learns its new topology as soon as redisguard tells of it."""
import http.client
import json
import os
import random
import socket
import threading
import time

from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisError

SOCKET = os.environ.get("REDISGUARD_SOCKET", "/run/redisguard/redisguard.sock")
TYPES = ("primary.changed", "slots.changed", "node.moved", "node.replaced")


class UnixConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def watch(redis):
    cursor, pause = "", 0.1
    while True:
        stream = UnixConnection("redisguard", timeout=45)  # a heartbeat comes every 15 s
        try:
            stream.request("GET", f"/v1/events?type={','.join(TYPES)}&after={cursor}")
            answer = stream.getresponse()
            if answer.status == 410:  # what came after the cursor is lost: begin anew
                cursor = ""
            for line in answer if answer.status == 200 else ():
                event, pause = json.loads(line), 0.1
                # "synced" ends the beginning of a stream without cursor, before which
                # something may have been missed.
                if event["type"] in TYPES + ("synced",):
                    dead = (event.get("change") or {}).get("from")  # to be asked last
                    redis.nodes_manager.initialize(last_failed_node_name=dead)
                    print("refreshed", event["type"], flush=True)
                cursor = event.get("cursor", cursor)  # only now: else it comes again
        except (OSError, ValueError, http.client.HTTPException, RedisError) as e:
            print("watch", e, flush=True)  # redisguard is not there: go on without
        stream.close()
        time.sleep(pause * random.uniform(1, 1.5))
        pause = min(2 * pause, 5)


seeds = [ClusterNode(*s.split(":")) for s in os.environ["REDIS_SEEDS"].split(",")]
redis = RedisCluster(startup_nodes=seeds, socket_connect_timeout=0.5, socket_timeout=1)
threading.Thread(target=watch, args=(redis,), daemon=True).start()
for i in range(2**63):
    try:
        redis.set(f"key:{i % 100}", i)
        print(f"ok key:{i % 100}", flush=True)
    except (RedisError, OSError) as e:
        print(f"error key:{i % 100}", repr(e), flush=True)
    time.sleep(0.01)
