//go:build linux

// Command bench measures a server beside etcd with etcd's own benchmark tool, in alternating rounds.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A row is one line of the table: how the tool is called and on how many members.
type row struct {
	name    string
	members int
	clients int
	total   int
	preload int // keys of 1 KiB written before the measurement
	args    []string
	events  int      // what one of total brings about at the clients, if that is what counts
	beside  []string // a load that goes on meanwhile
	rate    bool     // the tool's latencies say nothing here
	login   bool     // logins instead of the tool
}

func putArgs(verb string) []string {
	return []string{verb, "--key-size=8", "--key-space-size=100000", "--val-size=256"}
}

var rows = []row{
	{name: "put, 1 client", members: 1, clients: 1, total: 5_000, args: putArgs("put")},
	{name: "put, 64 clients", members: 1, clients: 64, total: 50_000, args: putArgs("put")},
	{name: "put, 1,000 clients", members: 1, clients: 1_000, total: 100_000, args: putArgs("put")},
	{name: "txn-put, 1,000 clients", members: 1, clients: 1_000, total: 100_000, args: putArgs("txn-put")},
	{name: "range, linearizable, 1,000 clients", members: 1, clients: 1_000, total: 100_000, preload: 1_000,
		args: []string{"range", keyName(7), "--consistency=l"}},
	{name: "range, serializable, 1,000 clients", members: 1, clients: 1_000, total: 100_000, preload: 1_000,
		args: []string{"range", keyName(7), "--consistency=s"}},
	{name: "range, linearizable, 20 clients, beside 40 writers at 5,000/s", members: 1, clients: 20, total: 40_000, preload: 1_000,
		args:   []string{"range", keyName(7), "--consistency=l"},
		beside: append(putArgs("put"), "--clients=40", "--conns=40", "--rate=5000", "--total=100000000")},
	{name: "list of 10,000 keys of 1 KiB, 4 clients", members: 1, clients: 4, total: 200, preload: 10_000,
		args: []string{"range", "k", "l", "--consistency=l"}},
	{name: "watch, events to 100 streams of 100 watchers", members: 1, clients: 100, total: 200, events: 10_000, rate: true,
		args: []string{"watch", "--streams=100", "--watch-per-stream=100", "--watched-key-total=1", "--put-rate=100000"}},
	{name: "watch latency, 100 clients, puts at 500/s", members: 1, clients: 100, total: 2_000, events: 100,
		args: []string{"watch-latency", "--put-rate=500"}},
	{name: "put, 3 members, 1,000 clients", members: 3, clients: 1_000, total: 50_000, args: putArgs("put")},
	{name: "txn-put, 3 members, 1,000 clients", members: 3, clients: 1_000, total: 50_000, args: putArgs("txn-put")},
	{name: "lease keepalive, 1,000 clients", members: 1, clients: 1_000, total: 100_000, args: []string{"lease-keepalive"}},
	{name: "lease keepalive, 3 members, 1,000 clients", members: 3, clients: 1_000, total: 50_000, args: []string{"lease-keepalive"}},
	{name: "login, 16 clients, bcrypt's cost 10", members: 1, clients: 16, total: 400, login: true},
}

// A sample is what one run of one row gave. Restart rows have only Restart, failover rows only Failovers.
type sample struct {
	Row     string  `json:"row"`
	Server  string  `json:"server"`
	Round   int     `json:"round"`
	Rate    float64 `json:"requests_per_second,omitempty"`
	P50     float64 `json:"p50_ms,omitempty"`
	P99     float64 `json:"p99_ms,omitempty"`
	CPU     float64 `json:"cpu_seconds_per_1000,omitempty"`
	RSS     float64 `json:"peak_rss_mib,omitempty"`
	Written float64 `json:"mib_written_per_1000"`
	Restart float64 `json:"restart_seconds,omitempty"`
	// From each SIGKILL of the leader to the first put that was sent after it and answered.
	Failovers []float64 `json:"failover_seconds,omitempty"`
}

type options struct {
	root, binary, out, only string
	rounds, keys, kills     int
	quick                   bool
}

func main() {
	var o options
	flag.StringVar(&o.root, "root", "", "repository root (set by the script)")
	flag.StringVar(&o.binary, "binary", "", "server to measure (default: build rusd in release)")
	flag.StringVar(&o.out, "out", "", "table (default: docs/benchmarks.md; with --quick e2e/out/benchmarks.md)")
	flag.StringVar(&o.only, "run", "", "only rows whose name matches this regular expression")
	flag.IntVar(&o.rounds, "rounds", 3, "alternating rounds")
	flag.IntVar(&o.keys, "keys", 1_000_000, "keys in the restart row, 0 for none")
	flag.IntVar(&o.kills, "kills", 10, "kills of the leader in a round of the failover row, 0 for none")
	flag.BoolVar(&o.quick, "quick", false, "one round with few requests: shows that the bench works, measures nothing")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(o options) error {
	only, err := regexp.Compile(o.only)
	if err != nil || flag.NArg() > 0 || o.rounds < 1 || o.keys < 0 || o.kills < 0 || o.root == "" {
		return errors.New("bad arguments, see scripts/bench.sh --help")
	}
	out := "docs/benchmarks.md"
	if o.quick {
		o.rounds, o.keys, o.kills, out = 1, min(o.keys, 10_000), min(o.kills, 1), "e2e/out/benchmarks.md"
	}
	if o.out == "" {
		o.out = filepath.Join(o.root, out)
	}
	if o.binary == "" {
		cmd := exec.Command("cargo", "build", "--release", "--locked")
		cmd.Dir, cmd.Stdout, cmd.Stderr = o.root, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("building rusd: %w", err)
		}
		target := os.Getenv("CARGO_TARGET_DIR")
		if target == "" {
			target = filepath.Join(o.root, "target")
		}
		o.binary = filepath.Join(target, "release", "rusd")
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	bin := filepath.Join(o.root, "e2e", "bin")
	servers := []struct{ name, path string }{{"rusd", o.binary}, {"etcd", filepath.Join(bin, "etcd")}}

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		endAll()
		os.Exit(130)
	}()
	defer endAll()

	var samples []sample
	for round := 1; round <= o.rounds; round++ {
		for i := range rows {
			r := rows[i]
			if !only.MatchString(r.name) {
				continue
			}
			if o.quick {
				r.total = max(r.total/50, 100) // fewer have no p99
			}
			for turn := range servers {
				s := servers[(turn+round)%2]
				got, err := measure(r, s.path, filepath.Join(bin, "benchmark"))
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, r.name, err)
				}
				got.Row, got.Server, got.Round = r.name, s.name, round
				samples = append(samples, got)
				fmt.Printf("round %d/%d  %-42s %-5s %9.0f/s  p99 %8.2f ms  %8.3g CPU s/1000\n", round, o.rounds, r.name, s.name, got.Rate, got.P99, got.CPU)
			}
		}
		if o.kills > 0 && only.MatchString(failoverName) {
			for turn := range servers {
				s := servers[(turn+round)%2]
				seconds, err := failover(s.path, o.kills)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, failoverName, err)
				}
				samples = append(samples, sample{Row: failoverName, Server: s.name, Round: round, Failovers: seconds})
				fmt.Printf("round %d/%d  %-42s %-5s %9.2f s (median of %d)\n", round, o.rounds, failoverName, s.name, quantile(seconds, 0.5), len(seconds))
			}
		}
		name := restartName(o.keys)
		if o.keys == 0 || !only.MatchString(name) {
			continue
		}
		for turn := range servers {
			s := servers[(turn+round)%2]
			seconds, err := restart(s.path, o.keys)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", s.name, name, err)
			}
			samples = append(samples, sample{Row: name, Server: s.name, Round: round, Restart: seconds})
			fmt.Printf("round %d/%d  %-42s %-5s %9.2f s\n", round, o.rounds, name, s.name, seconds)
		}
	}
	raw, err := json.MarshalIndent(samples, "", "  ")
	if err != nil {
		return err
	}
	work := filepath.Join(o.root, "e2e", "out")
	for _, dir := range []string{work, filepath.Dir(o.out)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(work, "bench.json"), append(raw, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("table:", o.out)
	return os.WriteFile(o.out, []byte(table(o, samples)), 0o644)
}

func restartName(keys int) string { return fmt.Sprintf("SIGKILL to first read, %d keys", keys) }

func measure(r row, server, tool string) (sample, error) {
	c, err := start(server, r.members)
	if err != nil {
		return sample{}, err
	}
	defer c.remove()
	if err := c.load(r.preload, 1024); err != nil {
		return sample{}, err
	}
	var cpu, written float64
	used := func() { cpu, written = c.used() }
	if r.login {
		s, err := logins(c, r.clients, r.total, used)
		return c.since(s, cpu, written, r.total), err
	}
	endpoints := "--endpoints=" + strings.Join(c.endpoints, ",")
	total := "--total"
	if r.args[0] == "watch" {
		total = "--put-total"
	}
	args := append([]string{}, r.args...)
	args = append(args, endpoints, "--precise", fmt.Sprintf("%s=%d", total, r.total),
		fmt.Sprintf("--clients=%d", r.clients), fmt.Sprintf("--conns=%d", min(r.clients, 100)))
	if r.beside != nil {
		end, err := c.beside(tool, append(append([]string{}, r.beside...), endpoints))
		if err != nil {
			return sample{}, err
		}
		defer end()
	}
	used()
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		return sample{}, fmt.Errorf("benchmark: %w: %s", err, tail(out))
	}
	s := c.since(sample{}, cpu, written, r.total*max(r.events, 1))
	err = parse(string(out), &s)
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, tail(out))
	}
	if r.rate {
		s.P50, s.P99 = 0, 0
	}
	return s, nil
}

// since completes a sample with what was used since then for a number of requests.
func (c *cluster) since(s sample, cpu, written float64, requests int) sample {
	cpuAfter, writtenAfter := c.used()
	thousands := float64(requests) / 1000
	s.CPU = (cpuAfter - cpu) / thousands
	s.Written = (writtenAfter - written) / (1 << 20) / thousands
	s.RSS = c.peakRSS()
	return s
}

var (
	rateLine = regexp.MustCompile(`Requests/sec:\s+([0-9.e+-]+)`)
	pctLine  = regexp.MustCompile(`(?m)^\s*(50|99)% in ([0-9.e+-]+) secs`)
)

func parse(out string, s *sample) error {
	if strings.Contains(out, "Error distribution") {
		return errors.New("requests failed")
	}
	rates := rateLine.FindAllStringSubmatch(out, -1)
	pcts := pctLine.FindAllStringSubmatch(out, -1)
	if len(rates) == 0 || len(pcts) != 2*len(rates) {
		return errors.New("the tool's output is not as expected")
	}
	// Where there are several summaries, the last one is of what is measured.
	rate := rates[len(rates)-1]
	pcts = pcts[len(pcts)-2:]
	s.Rate, _ = strconv.ParseFloat(rate[1], 64)
	s.P50, _ = strconv.ParseFloat(pcts[0][2], 64)
	s.P99, _ = strconv.ParseFloat(pcts[1][2], 64)
	s.P50, s.P99 = s.P50*1000, s.P99*1000
	return nil
}

func tail(out []byte) string {
	if len(out) > 2000 {
		out = out[len(out)-2000:]
	}
	return string(out)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sort.Float64s(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func table(o options, samples []sample) string {
	var names []string
	seen := map[string]bool{}
	for _, s := range samples {
		if !seen[s.Row] {
			seen[s.Row] = true
			names = append(names, s.Row)
		}
	}
	med := func(name, server string, of func(sample) float64) float64 {
		var v []float64
		for _, s := range samples {
			if s.Row == name && s.Server == server {
				v = append(v, of(s))
			}
		}
		return median(v)
	}
	cell := func(name string, of func(sample) float64, format string) string {
		a, b := med(name, "rusd", of), med(name, "etcd", of)
		if a == 0 && b == 0 {
			return " – |"
		}
		if b == 0 {
			return fmt.Sprintf(" "+format+" / "+format+" |", a, b)
		}
		return fmt.Sprintf(" "+format+" / "+format+" = **%.2f** |", a, b, a/b)
	}
	var t strings.Builder
	t.WriteString("# rusd beside etcd 3.5.17\n\n")
	fmt.Fprintf(&t, "Written by `make bench`: medians of %d alternating rounds on %d cores, %s. Each cell is rusd / etcd = **ratio**. ", o.rounds, runtime.NumCPU(), time.Now().UTC().Format("2006-01-02"))
	t.WriteString("Above 1 is better for requests/s, below 1 for the others; a watch's requests are the events that its clients get, and a range beside writers has the cost of the writes in its CPU. etcd's own `benchmark` tool (for logins the bench itself) runs on the same machine and shares its cores; fresh data directories for each row; values of 256 bytes; CPU, memory and writes are the sums over the members. ")
	t.WriteString("The raw samples go to `e2e/out/bench.json`; what profiles showed, and what is left, is in [performance.md](performance.md).\n\n")
	if o.quick {
		t.WriteString("**A `--quick` run: these numbers mean nothing.**\n\n")
	}
	t.WriteString("| Row | Requests/s | p50 ms | p99 ms | CPU s per 1,000 | Peak RSS MiB | MiB written per 1,000 |\n|---|---|---|---|---|---|---|\n")
	restarts, failovers := "", ""
	for _, name := range names {
		if name == failoverName {
			failovers = failoverCells(samples)
			continue
		}
		if med(name, "etcd", func(s sample) float64 { return s.Restart }) > 0 {
			restarts += "| " + name + " |" + cell(name, func(s sample) float64 { return s.Restart }, "%.2f") + "\n"
			continue
		}
		t.WriteString("| " + name + " |" +
			cell(name, func(s sample) float64 { return s.Rate }, "%.0f") +
			cell(name, func(s sample) float64 { return s.P50 }, "%.2f") +
			cell(name, func(s sample) float64 { return s.P99 }, "%.2f") +
			cell(name, func(s sample) float64 { return s.CPU }, "%.3g") +
			cell(name, func(s sample) float64 { return s.RSS }, "%.0f") +
			cell(name, func(s sample) float64 { return s.Written }, "%.2f") + "\n")
	}
	if restarts != "" {
		t.WriteString("\n| Restart | Seconds |\n|---|---|\n" + restarts)
	}
	return t.String() + failovers
}
