package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"rusd/judge/harness"
)

func init() {
	commands["soak"] = struct {
		run  func([]string) error
		help string
	}{runSoak, "a steady load of puts, watches, leases and logins: memory must not grow"}
}

const (
	soakKeys       = 1_000
	soakPutters    = 8
	soakPutEvery   = 16 * time.Millisecond // per putter: 500 a second in all
	soakStreams    = 50
	soakLeasers    = 10
	soakLeaseEvery = 200 * time.Millisecond // per leaser: 50 leases a second in all
	soakLoginEvery = 200 * time.Millisecond
	soakKept       = 5_000 // revisions that a compaction leaves
	soakSample     = 5 * time.Second
	// What the second half of the run may add to the median of memory.
	soakGrowthMax   = 0.05
	soakGrowthBytes = 4 << 20
)

type soak struct {
	node                                      *harness.Node
	stop                                      chan struct{}
	wg                                        sync.WaitGroup
	puts, events, leases, logins, errs, token atomic.Int64
	current                                   atomic.Value // string: the newest token
}

func (s *soak) every(d time.Duration, work func(r *rand.Rand) error) {
	s.wg.Add(1)
	seed := s.token.Add(1)
	go func() {
		defer s.wg.Done()
		r := rand.New(rand.NewSource(seed))
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			if err := work(r); err != nil {
				if s.errs.Add(1) < 10 {
					fmt.Println("error:", err)
				}
			}
		}
	}()
}

func (s *soak) ctx() (context.Context, context.CancelFunc) {
	ctx, cancel := harness.Ctx(opTimeout)
	return metadata.AppendToOutgoingContext(ctx, "token", s.current.Load().(string)), cancel
}

func (s *soak) login() error {
	ctx, cancel := harness.Ctx(opTimeout)
	defer cancel()
	answer, err := pb.NewAuthClient(s.node.Conn()).Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "pw"})
	if err != nil {
		return err
	}
	s.logins.Add(1)
	s.current.Store(answer.Token)
	return nil
}

func (s *soak) put(r *rand.Rand) error {
	ctx, cancel := s.ctx()
	defer cancel()
	key := fmt.Sprintf("s/%04d", r.Intn(soakKeys))
	_, err := s.node.KV().Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(strings.Repeat("v", 256))})
	s.puts.Add(1)
	return err
}

// lease grants one, hangs a key on it, renews it; half are revoked, half left to expire.
func (s *soak) lease(r *rand.Rand) error {
	ctx, cancel := s.ctx()
	defer cancel()
	c := pb.NewLeaseClient(s.node.Conn())
	granted, err := c.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 3})
	if err != nil {
		return err
	}
	s.leases.Add(1)
	key := fmt.Sprintf("l/%x", granted.ID)
	if _, err := s.node.KV().Put(ctx, &pb.PutRequest{Key: []byte(key), Lease: granted.ID}); err != nil {
		return err
	}
	alive, err := c.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: granted.ID}); err != nil {
		return err
	}
	if _, err := alive.Recv(); err != nil {
		return err
	}
	if r.Intn(2) == 0 {
		_, err = c.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: granted.ID})
	}
	return err
}

// watch holds a stream of four watchers for some seconds.
func (s *soak) watch(r *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(5+r.Intn(30))*time.Second)
	defer cancel()
	go func() {
		select {
		case <-s.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	ctx = metadata.AppendToOutgoingContext(ctx, "token", s.current.Load().(string))
	stream, err := pb.NewWatchClient(s.node.Conn()).Watch(ctx)
	if err != nil {
		return err
	}
	for i := 0; i < 4; i++ {
		from := fmt.Sprintf("s/%04d", r.Intn(soakKeys))
		if err := stream.Send(createReq(&pb.WatchCreateRequest{Key: []byte(from), RangeEnd: []byte("s0")})); err != nil {
			return err
		}
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			// The server knows the deadline too, and may be the first to see it pass.
			deadline, _ := ctx.Deadline()
			late := status.Code(err) == codes.DeadlineExceeded && time.Until(deadline) < 100*time.Millisecond
			if late || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch: %w", err)
		}
		s.events.Add(int64(len(answer.Events)))
	}
}

func (s *soak) compact(*rand.Rand) error {
	rev, err := s.revision()
	if err != nil || rev <= soakKept {
		return err
	}
	ctx, cancel := s.ctx()
	defer cancel()
	_, err = s.node.KV().Compact(ctx, &pb.CompactionRequest{Revision: rev - soakKept})
	return err
}

func (s *soak) revision() (int64, error) {
	ctx, cancel := s.ctx()
	defer cancel()
	answer, err := s.node.KV().Range(ctx, &pb.RangeRequest{Key: []byte("s/")})
	if err != nil {
		return 0, err
	}
	return answer.Header.Revision, nil
}

func (s *soak) enableAuth() error {
	ctx, cancel := harness.Ctx(opTimeout)
	defer cancel()
	c := pb.NewAuthClient(s.node.Conn())
	if _, err := c.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "root", Password: "pw"}); err != nil {
		return err
	}
	if _, err := c.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "root"}); err != nil {
		return err
	}
	if _, err := c.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}); err != nil {
		return err
	}
	_, err := c.AuthEnable(ctx, &pb.AuthEnableRequest{})
	return err
}

func medianOf(samples []int64) int64 {
	sorted := append([]int64{}, samples...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	return sorted[len(sorted)/2]
}

func runSoak(args []string) error {
	fs := flag.NewFlagSet("soak", flag.ExitOnError)
	server := fs.String("server", "", "the server under judgement")
	minutes := fs.Float64("minutes", 10, "how long")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *server == "" || *minutes < 0.5 {
		return errors.New("--server is needed, and half a minute")
	}
	nodes, err := harness.Cluster(harness.Opts{Bins: []string{*server}, Extra: []string{"--bcrypt-cost", "4", "--auth-token-ttl", "30"}})
	if err != nil {
		return err
	}
	if err := harness.StartAll(nodes, 30*time.Second); err != nil {
		return err
	}
	s := &soak{node: nodes[0], stop: make(chan struct{})}
	if err := s.enableAuth(); err != nil {
		return fmt.Errorf("enabling auth: %w", err)
	}
	if err := s.login(); err != nil {
		return fmt.Errorf("login: %w", err)
	}
	s.every(soakLoginEvery, func(*rand.Rand) error { return s.login() })
	s.every(10*time.Second, s.compact)
	for i := 0; i < soakPutters; i++ {
		s.every(soakPutEvery, s.put)
	}
	for i := 0; i < soakLeasers; i++ {
		s.every(soakLeaseEvery, s.lease)
	}
	for i := 0; i < soakStreams; i++ {
		s.every(time.Second, s.watch)
	}
	var curve []int64
	for end := time.Now().Add(time.Duration(*minutes * float64(time.Minute))); time.Now().Before(end); {
		time.Sleep(soakSample)
		curve = append(curve, s.node.RSS())
		if len(curve)%6 == 0 {
			fmt.Printf("%s: RSS %d MiB, %d puts, %d events, %d leases, %d logins, %d errors\n", time.Duration(len(curve))*soakSample,
				s.node.RSS()>>20, s.puts.Load(), s.events.Load(), s.leases.Load(), s.logins.Load(), s.errs.Load())
		}
	}
	close(s.stop)
	s.wg.Wait()
	// The first quarter fills what has a bound; the second and the last are compared.
	quarter := max(len(curve)/4, 1)
	before, after := medianOf(curve[quarter:2*quarter]), medianOf(curve[len(curve)-quarter:])
	var line []string
	for i := 0; i < len(curve); i += max(len(curve)/20, 1) {
		line = append(line, fmt.Sprint(curve[i]>>20))
	}
	fmt.Printf("RSS in MiB over the run: %s\n", strings.Join(line, " "))
	fmt.Printf("%.0f minutes, %d puts, %d events, %d leases, %d logins, %d errors; RSS median %.1f MiB in the second quarter, %.1f in the last\n",
		*minutes, s.puts.Load(), s.events.Load(), s.leases.Load(), s.logins.Load(), s.errs.Load(), float64(before)/(1<<20), float64(after)/(1<<20))
	if growth := after - before; growth > soakGrowthBytes && float64(growth) > soakGrowthMax*float64(before) {
		return fmt.Errorf("memory grew by %.1f MiB", float64(growth)/(1<<20))
	}
	if s.errs.Load() > 0 {
		return fmt.Errorf("%d errors", s.errs.Load())
	}
	return nil
}
