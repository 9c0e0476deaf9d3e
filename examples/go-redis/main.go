// Command example writes to a Redis Cluster, and learns its new topology as soon as redisguard
// tells of it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rdb := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: strings.Split(os.Getenv("REDIS_SEEDS"), ","),
		// A reload asks one node after the other, and the dead one may be the first. By default
		// it is dialled five times, for 5 s each.
		DialTimeout: 500 * time.Millisecond, DialerRetries: 1, ReadTimeout: time.Second, ContextTimeoutEnabled: true,
	})
	defer rdb.Close()
	guard := client.New(client.Config{Socket: os.Getenv("REDISGUARD_SOCKET")})
	defer guard.Close()
	go watch(ctx, guard, rdb)
	for i := 0; ctx.Err() == nil; i++ {
		write(ctx, rdb, fmt.Sprint("key:", i%100), i)
		time.Sleep(10 * time.Millisecond)
	}
}

func write(ctx context.Context, rdb *redis.ClusterClient, key string, value int) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := rdb.Set(ctx, key, value, 0).Err(); err != nil {
		fmt.Println("error", key, err)
		return
	}
	fmt.Println("ok", key)
}

// watch follows the stream until ctx ends; the client resumes it after a break, and waits before.
func watch(ctx context.Context, guard *client.Client, rdb *redis.ClusterClient) {
	for e, err := range guard.Events(ctx, "", v1.EventPrimaryChanged, v1.EventSlotsChanged, v1.EventNodeMoved, v1.EventNodeReplaced) {
		if err != nil {
			fmt.Println("watch", err) // redisguard is not there: go on without
		} else if e.Type != v1.Snapshot { // Synced too: something may have been missed before
			rdb.ReloadState(ctx)
			fmt.Println("refreshed", e.Type)
		}
	}
}
