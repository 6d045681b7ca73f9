//go:build linux

package main

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Seconds each test took real etcd on two cores; only weights for the time left.
//
//go:embed seconds.tsv
var secondsTable string

type outcome string

const (
	pass outcome = "pass"
	fail outcome = "fail"
	skip outcome = "skip"
)

type result struct {
	Test    string  `json:"test"`
	Result  outcome `json:"result"`
	Seconds float64 `json:"seconds"`
	Why     string  `json:"why,omitempty"`
	Log     string  `json:"log"`
}

func weights() map[string]float64 {
	w := map[string]float64{}
	for _, line := range strings.Split(secondsTable, "\n") {
		if f := strings.Split(line, "\t"); len(f) == 3 {
			if s, err := strconv.ParseFloat(f[2], 64); err == nil {
				w[f[0]] = s
			}
		}
	}
	return w
}

const prctlSetChildSubreaper = 36

// adoptOrphans makes orphaned servers our children, so that they can be found and ended by pid.
func adoptOrphans() {
	syscall.RawSyscall(syscall.SYS_PRCTL, prctlSetChildSubreaper, 1, 0)
}

// runAll runs the tests one after another. A failure of an earlier repetition stays a failure.
func runAll(o options, s *suite, names []string, interrupted <-chan os.Signal) ([]result, bool) {
	logs := filepath.Join(o.e2e, "out", "logs")
	os.RemoveAll(logs)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		return nil, true
	}

	weight := weights()
	left := 0.0
	for _, name := range names {
		left += weight[name] + 0.2
	}
	left *= float64(o.repeat)
	spent := map[int]float64{}
	expected, measured := 0.0, 0.0
	n := len(names) * o.repeat
	results := make([]result, len(names))
	for round := 0; round < o.repeat; round++ {
		for i, name := range names {
			var r result
			if t, over := overLimit(o, name, spent); over {
				r = result{Test: name, Result: fail, Why: fmt.Sprintf("tier %d is over its limit of %s", t.Number, t.Limit)}
			} else {
				var stop bool
				if r, stop = runOne(o, s, name, round, interrupted); stop {
					return results[:completed(results)], true
				}
			}
			for _, t := range tiers {
				if regexp.MustCompile(t.Regex).MatchString(name) {
					spent[t.Number] += r.Seconds
				}
			}
			left -= weight[name] + 0.2
			expected += weight[name] + 0.2
			measured += r.Seconds
			pace := max(measured/expected, 0.2)
			eta := time.Duration(left * pace * float64(time.Second)).Round(time.Second)
			note := ""
			if r.Why != "" {
				note = "  " + r.Why
			}
			fmt.Printf("[%d/%d] %s %-60s %6.1fs  left ~%s%s\n", round*len(names)+i+1, n, strings.ToUpper(string(r.Result)), name, r.Seconds, eta, note)
			if round == 0 {
				results[i] = r
				continue
			}
			r.Seconds += results[i].Seconds
			if results[i].Result != pass {
				r.Result, r.Why, r.Log = results[i].Result, results[i].Why, results[i].Log
			}
			results[i] = r
		}
	}
	return results, false
}

func completed(results []result) int {
	for i, r := range results {
		if r.Test == "" {
			return i
		}
	}
	return len(results)
}

// overLimit tells whether every wanted tier the test belongs to has used up its time.
func overLimit(o options, name string, spent map[int]float64) (tier, bool) {
	var last tier
	for _, t := range tiers {
		for _, wanted := range o.tiers {
			if t.Number != wanted || !regexp.MustCompile(t.Regex).MatchString(name) {
				continue
			}
			if spent[t.Number] < t.Limit.Seconds()*float64(o.repeat) {
				return tier{}, false
			}
			last = t
		}
	}
	return last, true
}

func runOne(o options, s *suite, name string, round int, interrupted <-chan os.Signal) (result, bool) {
	logName := name + ".log"
	if round > 0 {
		logName = fmt.Sprintf("%s.%d.log", name, round+1)
	}
	r := result{Test: name, Result: fail, Log: filepath.Join("logs", logName)}
	log, err := os.Create(filepath.Join(o.e2e, "out", r.Log))
	if err != nil {
		r.Why = err.Error()
		return r, false
	}
	defer log.Close()
	tmp, err := os.MkdirTemp("", "rusd-e2e-")
	if err != nil {
		r.Why = err.Error()
		return r, false
	}
	defer os.RemoveAll(tmp)

	deadline := o.deadline
	if name == "TestAuthority" {
		deadline *= 4
	}
	cmd := s.command("-test.run", "^"+name+"$", "-test.v", "-test.timeout", deadline.String())
	cmd.Env = append(environment(), "TMPDIR="+tmp)
	if o.serverOutput {
		cmd.Env = append(cmd.Env, "EXPECT_DEBUG=1")
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	for _, leftover := range []string{"default.etcd", "etcd1.etcd"} {
		os.RemoveAll(filepath.Join(s.cwd(), leftover))
	}

	start := time.Now()
	if err := cmd.Start(); err != nil {
		r.Why = err.Error()
		return r, false
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	stop := false
	select {
	case err = <-done:
	case <-interrupted:
		stop = true
	// The suite's own timeout comes first: its goroutine dump is worth having in the log.
	case <-time.After(deadline + 10*time.Second):
		r.Why = "killed at the deadline"
	}
	if stop || r.Why != "" {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		err = <-done
	}
	r.Seconds = float64(time.Since(start).Milliseconds()) / 1000
	if killed := endLeftovers(); len(killed) > 0 {
		fmt.Fprintf(log, "\ncompat: ended what the test left running: %s\n", strings.Join(killed, ", "))
	}
	if stop {
		return r, true
	}
	text := readTail(log.Name())
	switch {
	case r.Why != "":
	case strings.Contains(text, "panic: test timed out after"):
		r.Why = "timed out after " + deadline.String()
	case err != nil:
		r.Why = whyFailed(text, err)
	case strings.Contains(text, "--- SKIP: "+name+" "):
		r.Result = skip
	case strings.Contains(text, "--- PASS: "+name+" "):
		r.Result = pass
	default:
		r.Why = "ended without a verdict"
	}
	return r, false
}

// environment is what the tests see of ours: the suite writes its environment into every log, and
// logs become public artifacts; a stray ETCD_ variable would also reconfigure the servers.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "TERM"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

var failLine = regexp.MustCompile(`(?m)^\s+(\w+\.go:\d+: .*)$`)

func whyFailed(text string, err error) string {
	if found := failLine.FindAllStringSubmatch(text, -1); found != nil {
		line := strings.TrimSpace(found[len(found)-1][1])
		if len(line) > 160 {
			line = line[:160] + "…"
		}
		return line
	}
	return err.Error()
}

func readTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 1 << 20
	if info, err := f.Stat(); err == nil && info.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	data, _ := io.ReadAll(f)
	return string(data)
}

// endLeftovers kills, by pid, every process that descends from this one, and reaps those that
// became its children. The test itself has been waited for by now.
func endLeftovers() []string {
	var killed []string
	for i := 0; i < 100; i++ {
		pids := descendants(os.Getpid())
		if len(pids) == 0 {
			break
		}
		for pid, name := range pids {
			if i == 0 && name != "" {
				killed = append(killed, fmt.Sprintf("%s (%d)", name, pid))
			}
			syscall.Kill(pid, syscall.SIGKILL)
			syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return killed
}

// descendants maps the pids below root to their names; a zombie's name is empty.
func descendants(root int) map[int]string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	parent, name := map[int]int{}, map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		// The name is in parentheses and may itself hold any character.
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		if open < 0 || end < open {
			continue
		}
		fields := strings.Fields(string(stat[end+1:]))
		if len(fields) < 2 {
			continue
		}
		parent[pid], _ = strconv.Atoi(fields[1])
		if fields[0] != "Z" {
			name[pid] = string(stat[open+1 : end])
		}
	}
	below := map[int]string{}
	for pid := range parent {
		for p := parent[pid]; p > 0; p = parent[p] {
			if p == root {
				below[pid] = name[pid]
				break
			}
		}
	}
	return below
}

func commit(root string) string {
	out, err := exec.Command("git", "-C", root, "rev-parse", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	id := strings.TrimSpace(string(out))
	if out, err := exec.Command("git", "-C", root, "status", "--porcelain", "--untracked-files=no").Output(); err == nil && len(out) > 0 {
		id += "+changes"
	}
	return id
}
