//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand"
	"sort"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	failoverName    = "SIGKILL of the leader to the next put"
	failoverMembers = 3
	// While nobody leads, each of the others is sent a put this often.
	failoverPutEvery = 5 * time.Millisecond
	// After a member has come back, until the next kill; and up to so much more.
	failoverRest, failoverRestMore = 500 * time.Millisecond, 300 * time.Millisecond
	failoverLimit                  = 30 * time.Second
)

// failover kills the leader again and again; the seconds from each kill to the first put that was sent
// after it, to either of the others, and answered.
func failover(binary string, kills int) ([]float64, error) {
	c, err := start(binary, failoverMembers)
	if err != nil {
		return nil, err
	}
	defer c.remove()
	clients := make([]*clientv3.Client, failoverMembers)
	for i, endpoint := range c.endpoints {
		clients[i], err = clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
		if err != nil {
			return nil, err
		}
		defer clients[i].Close()
	}
	var seconds []float64
	for len(seconds) < kills {
		time.Sleep(failoverRest + time.Duration(rand.Int63n(int64(failoverRestMore))))
		leader, err := c.leader(clients)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		c.killOne(leader)
		took, err := firstPut(clients, leader, begin)
		if err != nil {
			return nil, err
		}
		seconds = append(seconds, took.Seconds())
		if err := c.runOne(leader); err != nil {
			return nil, err
		}
		if err := c.firstRead(time.Minute); err != nil {
			return nil, err
		}
	}
	return seconds, nil
}

func (c *cluster) leader(clients []*clientv3.Client) (int, error) {
	for end := time.Now().Add(failoverLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for i, client := range clients {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			s, err := client.Status(ctx, c.endpoints[i])
			cancel()
			if err == nil && s.Leader == s.Header.MemberId {
				return i, nil
			}
		}
	}
	return 0, errors.New("nobody leads")
}

// firstPut sends puts to all but one, none of which waits for another.
func firstPut(clients []*clientv3.Client, but int, begin time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), failoverLimit)
	defer cancel()
	answered := make(chan time.Duration, 1)
	ticker := time.NewTicker(failoverPutEvery)
	defer ticker.Stop()
	for i := 0; ; i++ {
		for j, client := range clients {
			if j == but {
				continue
			}
			go func() {
				if _, err := client.Put(ctx, keyName(i), "v"); err == nil {
					select {
					case answered <- time.Since(begin):
					default:
					}
				}
			}()
		}
		select {
		case took := <-answered:
			return took, nil
		case <-ctx.Done():
			return 0, fmt.Errorf("no put was answered within %v of the kill", failoverLimit)
		case <-ticker.C:
		}
	}
}

// quantile by nearest rank.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sorted := append([]float64(nil), v...)
	sort.Float64s(sorted)
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

// failoverCells is the table's part about failovers.
func failoverCells(samples []sample) string {
	all := map[string][]float64{}
	for _, s := range samples {
		all[s.Server] = append(all[s.Server], s.Failovers...)
	}
	cell := func(q float64) string {
		a, b := quantile(all["rusd"], q), quantile(all["etcd"], q)
		return fmt.Sprintf(" %.2f / %.2f = **%.2f** |", a, b, a/b)
	}
	return fmt.Sprintf("\n| Failover, %d members, %d kills each | Median s | p99 s |\n|---|---|---|\n| %s |%s%s\n",
		failoverMembers, len(all["rusd"]), failoverName, cell(0.5), cell(0.99))
}
