//go:build linux

package main

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// logins has each of some clients log in, one time after the other, until there were total. etcd's
// tool has nothing of the kind. Both servers hash at their default, bcrypt's cost 10. The warm-up,
// one login for each client, is not counted: used is called behind it.
func logins(c *cluster, clients, total int, used func()) (sample, error) {
	const name, password = "alice", "a password of alice's"
	client, err := c.client()
	if err != nil {
		return sample{}, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, user := range []string{"root", name} {
		if _, err := client.UserAdd(ctx, user, password); err != nil {
			return sample{}, fmt.Errorf("adding a user: %w", err)
		}
	}
	if _, err := client.UserGrantRole(ctx, "root", "root"); err != nil {
		return sample{}, fmt.Errorf("granting root: %w", err)
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		return sample{}, fmt.Errorf("enabling auth: %w", err)
	}
	run := func(total int) ([]time.Duration, error) {
		var next atomic.Int64
		var mutex sync.Mutex
		var took []time.Duration
		var failed error
		var wg sync.WaitGroup
		for w := 0; w < clients; w++ {
			own, err := c.client()
			if err != nil {
				return nil, err
			}
			defer own.Close()
			wg.Add(1)
			go func() {
				defer wg.Done()
				for next.Add(1) <= int64(total) {
					begin := time.Now()
					_, err := own.Authenticate(ctx, name, password)
					mutex.Lock()
					took = append(took, time.Since(begin))
					if err != nil {
						failed = err
					}
					mutex.Unlock()
					if err != nil {
						return
					}
				}
			}()
		}
		wg.Wait()
		return took, failed
	}
	if _, err := run(clients); err != nil {
		return sample{}, fmt.Errorf("a login: %w", err)
	}
	used()
	begin := time.Now()
	took, err := run(total)
	if err != nil {
		return sample{}, fmt.Errorf("a login: %w", err)
	}
	elapsed := time.Since(begin).Seconds()
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	at := func(q float64) float64 {
		return took[int(q*float64(len(took)-1))].Seconds() * 1000
	}
	return sample{Rate: float64(len(took)) / elapsed, P50: at(0.5), P99: at(0.99)}, nil
}
