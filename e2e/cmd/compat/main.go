//go:build linux

// Command compat runs etcd's own end-to-end suite, one process per test, against rusd or against
// etcd itself, and compares the outcome with the ledger of tests that must stay green.
package main

import (
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
	"strings"
	"syscall"
	"time"
)

// etcdVersion is the release whose suite and tools are used; go.mod pins the same one.
const etcdVersion = "3.5.17"

type tier struct {
	Number int
	Name   string
	Regex  string
	Count  int
	Limit  time.Duration
}

var tiers = []tier{
	{1, "smoke", `^TestCtlV3(Put|Get)NoTLS$`, 2, 5 * time.Minute},
	{2, "core KV", `^TestCtlV3(Put|Get|Del)`, 26, 10 * time.Minute},
	{3, "watch, lease, auth", `^TestCtlV3(Watch|Lease|Auth)`, 79, 15 * time.Minute},
	{4, "cluster and members", `^Test(CtlV3(Member|Endpoint|MoveLeader)|MemberReplace|ClusterVersion)`, 28, 15 * time.Minute},
	{5, "compaction, defragmentation, snapshots", `^Test(CtlV3(Auth)?(Compact|Defrag|Snapshot)|Issue6361|RestoreCompactionRevBump|CompactHashCheck|DefragNoSpace|BootstrapDefrag)`, 21, 15 * time.Minute},
	{6, "everything", `.`, 297, 60 * time.Minute},
}

type tierFlag []int

func (t *tierFlag) String() string { return fmt.Sprint([]int(*t)) }

func (t *tierFlag) Set(s string) error {
	for _, word := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		if len(word) != 1 || word[0] < '1' || word[0] > '6' {
			return fmt.Errorf("tiers are 1 to 6, not %q", word)
		}
		*t = append(*t, int(word[0]-'0'))
	}
	return nil
}

type options struct {
	root, e2e                          string
	tiers                              tierFlag
	run, binary, report, against       string
	etcdSrc, lastRelease               string
	updateLedger, readme, strict, list bool
	netns, buildOnly, serverOutput     bool
	repeat                             int
	deadline                           time.Duration
}

func parse() (options, error) {
	var o options
	flag.StringVar(&o.root, "root", "", "repository root (set by the script)")
	flag.Var(&o.tiers, "tier", "tier to run, 1 to 6; may be repeated (default: all)")
	flag.StringVar(&o.run, "run", "", "only tests whose name matches this regular expression")
	flag.StringVar(&o.binary, "binary", "", "server to test (default: build rusd in release)")
	flag.StringVar(&o.report, "report", "", "JSON report (default: e2e/out/report.json)")
	flag.StringVar(&o.against, "against", "rusd", "rusd, or etcd for etcd "+etcdVersion+" itself")
	flag.StringVar(&o.etcdSrc, "etcd-src", "", "take suite and tools from this etcd checkout instead of Go modules")
	flag.StringVar(&o.lastRelease, "last-release", os.Getenv("ETCD_LAST_RELEASE"), "etcd 3.4 binary for the upgrade tests, which skip without one")
	flag.BoolVar(&o.updateLedger, "update-ledger", false, "add newly passing tests to e2e/ledger.tsv")
	flag.BoolVar(&o.readme, "readme", false, "write the numbers of this run into README.md")
	flag.BoolVar(&o.strict, "strict", false, "any failing test makes the run red, in the ledger or not")
	flag.BoolVar(&o.list, "list", false, "print the selected tests and stop")
	flag.BoolVar(&o.buildOnly, "build-only", false, "build suite and tools and stop")
	flag.BoolVar(&o.netns, "netns", false, "run in a network namespace of its own (needs unshare and ip)")
	flag.BoolVar(&o.serverOutput, "server-output", false, "keep what the servers print in the log of each test")
	flag.IntVar(&o.repeat, "repeat", 1, "run the selection this many times; a test passes if it always does")
	flag.DurationVar(&o.deadline, "deadline", 3*time.Minute, "time one test may take (TestAuthority: four times that)")
	flag.Parse()

	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case o.against != "rusd" && o.against != "etcd":
		return o, fmt.Errorf("--against takes rusd or etcd, not %q", o.against)
	case o.repeat < 1:
		return o, errors.New("--repeat must be at least 1")
	case o.deadline < time.Second:
		return o, errors.New("--deadline must be at least 1s")
	case o.updateLedger && o.against != "rusd":
		return o, errors.New("--update-ledger records what rusd passes; it does not go with --against etcd")
	case o.readme && o.against != "rusd":
		return o, errors.New("--readme shows what rusd passes; it does not go with --against etcd")
	}
	if _, err := regexp.Compile(o.run); err != nil {
		return o, fmt.Errorf("--run: %w", err)
	}
	for _, p := range []*string{&o.root, &o.binary, &o.report, &o.etcdSrc, &o.lastRelease} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o, err
		}
		*p = abs
	}
	if o.root == "" {
		return o, errors.New("start this through scripts/etcd-e2e-compat.sh")
	}
	o.e2e = filepath.Join(o.root, "e2e")
	if o.report == "" {
		o.report = filepath.Join(o.e2e, "out", "report.json")
	}
	if len(o.tiers) == 0 {
		o.tiers = tierFlag{1, 2, 3, 4, 5, 6}
	}
	sort.Ints(o.tiers)
	return o, nil
}

func main() {
	o, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		os.Exit(2)
	}
	if o.netns && os.Getenv("RUSD_E2E_NETNS") == "" {
		err = enterNamespace()
	} else {
		var code int
		if code, err = compat(o); err == nil {
			os.Exit(code)
		}
	}
	fmt.Fprintln(os.Stderr, "compat:", err)
	os.Exit(2)
}

// enterNamespace replaces this process by itself in a new network namespace with loopback up.
func enterNamespace() error {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return errors.New("--netns needs unshare (Debian: apt-get install util-linux)")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("--netns needs ip (Debian: apt-get install iproute2)")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := append([]string{"unshare", "-rn", "sh", "-c", `ip link set lo up && exec "$0" "$@"`, self}, os.Args[1:]...)
	return syscall.Exec(unshare, argv, append(os.Environ(), "RUSD_E2E_NETNS=1"))
}

func compat(o options) (int, error) {
	unlock, err := lock(o)
	if err != nil {
		return 0, err
	}
	defer unlock()

	suite, err := prepare(o)
	if err != nil {
		return 0, err
	}
	if o.buildOnly {
		return 0, nil
	}
	selected, err := choose(o, suite)
	if err != nil {
		return 0, err
	}
	if o.list {
		for _, t := range selected {
			fmt.Println(t)
		}
		return 0, nil
	}
	if len(selected) == 0 {
		return 0, errors.New("no test matches")
	}

	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	started := time.Now()
	results, stopped := runAll(o, suite, selected, interrupted)
	rep := newReport(o, suite, started, results)
	return finish(o, rep, stopped)
}

// choose lists the tests of the wanted tiers, each once, in the order of tiers and suite, after
// checking that the suite still has as many tests per tier as it should.
func choose(o options, s *suite) ([]string, error) {
	out, err := s.command("-test.list", ".").Output()
	if err != nil {
		return nil, fmt.Errorf("listing the suite's tests: %w", err)
	}
	var all []string
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, "Test") {
			all = append(all, strings.TrimSpace(line))
		}
	}
	only := regexp.MustCompile(o.run)
	seen := map[string]bool{}
	var selected []string
	for _, t := range tiers {
		re := regexp.MustCompile(t.Regex)
		count := 0
		wanted := false
		for _, n := range o.tiers {
			wanted = wanted || n == t.Number
		}
		for _, name := range all {
			if !re.MatchString(name) {
				continue
			}
			count++
			if wanted && only.MatchString(name) && !seen[name] {
				seen[name] = true
				selected = append(selected, name)
			}
		}
		if count != t.Count {
			return nil, fmt.Errorf("tier %d has %d tests in this suite, etcd %s has %d", t.Number, count, etcdVersion, t.Count)
		}
	}
	return selected, nil
}

// lock keeps two runs apart: one per work tree, and one per machine for the suite's fixed ports
// (a namespace of its own needs only the first).
func lock(o options) (func(), error) {
	names := []string{filepath.Join(o.e2e, "out", ".lock")}
	if !o.netns && !o.buildOnly {
		names = append(names, filepath.Join(os.TempDir(), fmt.Sprintf("rusd-e2e-ports-%d.lock", os.Getuid())))
	}
	var held []*os.File
	for _, name := range names {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			fmt.Fprintf(os.Stderr, "compat: another run holds %s, waiting for it (--netns needs no wait for ports)\n", name)
			if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
				return nil, err
			}
		}
		held = append(held, f)
	}
	return func() {
		for _, f := range held {
			f.Close()
		}
	}, nil
}

func goVersion() string { return strings.TrimPrefix(runtime.Version(), "go") }
