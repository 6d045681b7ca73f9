package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"rusd/judge/harness"
)

func init() {
	commands["compaction"] = struct {
		run  func([]string) error
		help string
	}{runCompaction, "put latency while a long history is compacted, beside etcd"}
}

type compactionOpts struct {
	revisions, keys, value int
	clients, rate          int
	baseline               time.Duration
	trace                  string
}

// lats is what one phase of puts gave.
type lats struct {
	p50, p99, max time.Duration
	rate          float64
}

func runCompaction(args []string) error {
	fs := flag.NewFlagSet("compaction", flag.ExitOnError)
	var o compactionOpts
	rusd := fs.String("rusd", "", "the server under judgement")
	etcd := fs.String("etcd", "", "etcd 3.5.17; without it only the other is measured")
	rounds := fs.Int("rounds", 1, "rounds, each on fresh data")
	ratio := fs.Float64("max-ratio", 2, "largest p99 during a compaction over the one without, median of rounds")
	fs.IntVar(&o.revisions, "revisions", 1_000_000, "revisions to compact")
	fs.IntVar(&o.keys, "keys", 10_000, "keys they belong to")
	fs.IntVar(&o.value, "value", 100, "bytes of a value")
	fs.IntVar(&o.clients, "clients", 32, "connections that put meanwhile")
	fs.IntVar(&o.rate, "rate", 2000, "puts per second of all together, each timed from when it was due (0: one after the other)")
	fs.DurationVar(&o.baseline, "baseline", 10*time.Second, "time measured without a compaction, and at least with one")
	fs.StringVar(&o.trace, "trace", "", "a file that gets each put of rusd's: seconds since 1970 when it was due, and its milliseconds")
	fs.Parse(args)
	if *rusd == "" {
		return errors.New("--rusd is needed")
	}
	var ratios []float64
	fmt.Printf("%-6s %28s %28s %8s %12s\n", "", "without: p50 / p99 / max", "during: p50 / p99 / max", "p99", "compaction")
	for round := 0; round < *rounds; round++ {
		for _, bin := range []string{*rusd, *etcd} {
			if bin == "" {
				continue
			}
			r, err := compactionRound(bin, &o)
			if err != nil {
				return err
			}
			if bin == *rusd {
				ratios = append(ratios, r)
			}
		}
	}
	sort.Float64s(ratios)
	if median := ratios[len(ratios)/2]; median > *ratio {
		return fmt.Errorf("put p99 during the compaction is %.2f times the one without, more than %.2f", median, *ratio)
	}
	return nil
}

func compactionRound(bin string, o *compactionOpts) (float64, error) {
	abs, err := filepath.Abs(bin)
	if err != nil {
		return 0, err
	}
	nodes, err := harness.Cluster(harness.Opts{Bins: []string{abs}})
	if err != nil {
		return 0, err
	}
	if err := harness.StartAll(nodes, 20*time.Second); err != nil {
		return 0, err
	}
	defer harness.StopAll(nodes)
	node := nodes[0]
	var conns []*grpc.ClientConn
	for i := 0; i < o.clients; i++ {
		c := node.Dial()
		defer c.Close()
		conns = append(conns, c)
	}
	rev, err := fillHistory(conns, o)
	if err != nil {
		return 0, err
	}
	// What the fill left to write in the background is not part of either phase.
	time.Sleep(5 * time.Second)
	before, err := putLoad(conns, o, time.After(o.baseline))
	if err != nil {
		return 0, err
	}
	done := make(chan time.Time)
	var took time.Duration
	failed := make(chan error, 1)
	go func() {
		begin := time.Now()
		ctx, cancel := harness.Ctx(10 * time.Minute)
		defer cancel()
		_, err := pb.NewKVClient(conns[0]).Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
		took = time.Since(begin)
		failed <- err
		if rest := o.baseline - took; rest > 0 && err == nil && took < time.Second {
			time.Sleep(rest)
		}
		close(done)
	}()
	during, err := putLoad(conns, o, done)
	if err != nil {
		return 0, err
	}
	if err := <-failed; err != nil {
		return 0, fmt.Errorf("compact: %w", err)
	}
	ratio := float64(during.p99) / float64(before.p99)
	fmt.Printf("%-6s %28s %28s %7.2fx %11.1fs   %.0f and %.0f puts/s, %d MiB resident\n", filepath.Base(bin), before, during, ratio, took.Seconds(), before.rate, during.rate, node.RSS()>>20)
	return ratio, nil
}

func (l lats) String() string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.2f / %.2f / %.1f ms", ms(l.p50), ms(l.p99), ms(l.max))
}

func historyKey(i int) []byte { return []byte(fmt.Sprintf("history/%08d", i)) }

// fillHistory writes the revisions, one put each, and gives the last.
func fillHistory(conns []*grpc.ClientConn, o *compactionOpts) (int64, error) {
	const inFlight = 512
	var next, last atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, inFlight)
	value := make([]byte, o.value)
	for w := 0; w < inFlight; w++ {
		kv := pb.NewKVClient(conns[w%len(conns)])
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= o.revisions {
					return
				}
				r, err := kv.Put(context.Background(), &pb.PutRequest{Key: historyKey(i % o.keys), Value: value})
				if err != nil {
					errs <- err
					return
				}
				for at := last.Load(); r.Header.Revision > at && !last.CompareAndSwap(at, r.Header.Revision); at = last.Load() {
				}
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-errs:
		return 0, fmt.Errorf("fill: %w", err)
	default:
		return last.Load(), nil
	}
}

// putLoad puts until it is told to end.
func putLoad(conns []*grpc.ClientConn, o *compactionOpts, end <-chan time.Time) (lats, error) {
	var mu sync.Mutex
	var all []time.Duration
	var traces []trace
	var wg sync.WaitGroup
	stop := make(chan struct{})
	errs := make(chan error, len(conns))
	value := make([]byte, o.value)
	begin := time.Now()
	for w := range conns {
		kv := pb.NewKVClient(conns[w])
		wg.Add(1)
		go func(w int) {
			defer wg.Done()
			r := rand.New(rand.NewSource(int64(w)))
			var own []time.Duration
			var traced []trace
			defer func() {
				mu.Lock()
				all = append(all, own...)
				traces = append(traces, traced...)
				mu.Unlock()
			}()
			pause := time.Duration(0)
			if o.rate > 0 {
				pause = time.Duration(len(conns)) * time.Second / time.Duration(o.rate)
			}
			due := begin.Add(pause * time.Duration(w) / time.Duration(len(conns)))
			for {
				if pause > 0 {
					time.Sleep(time.Until(due))
				} else {
					due = time.Now()
				}
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := harness.Ctx(30 * time.Second)
				_, err := kv.Put(ctx, &pb.PutRequest{Key: historyKey(r.Intn(o.keys)), Value: value})
				cancel()
				if err != nil {
					errs <- err
					return
				}
				own = append(own, time.Since(due))
				if o.trace != "" {
					traced = append(traced, trace{due, time.Since(due)})
				}
				due = due.Add(pause)
			}
		}(w)
	}
	<-end
	close(stop)
	wg.Wait()
	select {
	case err := <-errs:
		return lats{}, fmt.Errorf("put: %w", err)
	default:
	}
	if len(all) == 0 {
		return lats{}, errors.New("no put was answered")
	}
	if o.trace != "" {
		if err := writeTrace(o.trace, traces); err != nil {
			return lats{}, err
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(q float64) time.Duration { return all[int(q*float64(len(all)-1))] }
	return lats{at(0.5), at(0.99), at(1), float64(len(all)) / time.Since(begin).Seconds()}, nil
}

// trace is one put: when it was due and how long it took.
type trace struct {
	due  time.Time
	took time.Duration
}

// writeTrace adds one phase to the file, in the order in which the puts were due.
func writeTrace(path string, traces []trace) error {
	sort.Slice(traces, func(i, j int) bool { return traces[i].due.Before(traces[j].due) })
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, t := range traces {
		fmt.Fprintf(w, "%.4f %.3f\n", float64(t.due.UnixMicro())/1e6, float64(t.took.Microseconds())/1e3)
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
