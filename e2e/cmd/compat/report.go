//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"
)

type tierReport struct {
	Tier    int     `json:"tier"`
	Name    string  `json:"name"`
	Regex   string  `json:"regex"`
	Tests   int     `json:"tests"`
	Run     int     `json:"run"`
	Passed  int     `json:"passed"`
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Seconds float64 `json:"seconds"`
}

type report struct {
	Against  string            `json:"against"`
	Commit   string            `json:"commit"`
	Versions map[string]string `json:"versions"`
	Started  string            `json:"started"`
	Seconds  float64           `json:"seconds"`
	Repeat   int               `json:"repeat"`
	Passed   int               `json:"passed"`
	Failed   int               `json:"failed"`
	Skipped  int               `json:"skipped"`
	Lost     []string          `json:"lost"`
	Gained   []string          `json:"gained"`
	Tiers    []tierReport      `json:"tiers"`
	Tests    []result          `json:"tests"`
}

func newReport(o options, s *suite, started time.Time, results []result) *report {
	r := &report{
		Against:  o.against,
		Commit:   commit(o.root),
		Versions: s.versions,
		Started:  started.UTC().Format(time.RFC3339),
		Seconds:  time.Since(started).Round(100 * time.Millisecond).Seconds(),
		Repeat:   o.repeat,
		Lost:     []string{},
		Gained:   []string{},
		Tests:    results,
	}
	r.Passed, r.Failed, r.Skipped, _ = tally(results, regexp.MustCompile("."))
	for _, n := range o.tiers {
		if len(r.Tiers) > 0 && r.Tiers[len(r.Tiers)-1].Tier == n {
			continue
		}
		t := tiers[n-1]
		tr := tierReport{Tier: n, Name: t.Name, Regex: t.Regex, Tests: t.Count}
		tr.Passed, tr.Failed, tr.Skipped, tr.Seconds = tally(results, regexp.MustCompile(t.Regex))
		tr.Run = tr.Passed + tr.Failed + tr.Skipped
		r.Tiers = append(r.Tiers, tr)
	}
	return r
}

func tally(results []result, re *regexp.Regexp) (passed, failed, skipped int, seconds float64) {
	for _, r := range results {
		if !re.MatchString(r.Test) {
			continue
		}
		seconds += r.Seconds
		switch r.Result {
		case pass:
			passed++
		case skip:
			skipped++
		default:
			failed++
		}
	}
	return passed, failed, skipped, float64(int(seconds*10+0.5)) / 10
}

// The ledger names its one verdict as `go test` prints it.
const (
	ledgerHeader = "test\tresult"
	ledgerPass   = "PASS"
)

func ledgerPath(o options) string { return filepath.Join(o.e2e, "ledger.tsv") }

func readLedger(o options) (map[string]bool, error) {
	data, err := os.ReadFile(ledgerPath(o))
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if lines[0] != ledgerHeader {
		return nil, errors.New("e2e/ledger.tsv: the first line must be test<TAB>result")
	}
	must := map[string]bool{}
	for i, line := range lines[1:] {
		name, verdict, _ := strings.Cut(line, "\t")
		if name == "" || verdict != ledgerPass {
			return nil, fmt.Errorf("e2e/ledger.tsv:%d: want a test, a tab and PASS", i+2)
		}
		must[name] = true
	}
	return must, nil
}

func writeLedger(o options, must map[string]bool) error {
	names := make([]string, 0, len(must))
	for name := range must {
		names = append(names, name)
	}
	sort.Strings(names)
	text := ledgerHeader + "\n"
	for _, name := range names {
		text += name + "\t" + ledgerPass + "\n"
	}
	return replaceFile(ledgerPath(o), []byte(text))
}

// replaceFile leaves either the old or the new content, never half of it.
func replaceFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// finish compares with the ledger, writes the report and says in the exit code how it went.
func finish(o options, r *report, stopped bool) (int, error) {
	if o.against == "rusd" {
		must, err := readLedger(o)
		if err != nil {
			return 0, err
		}
		for _, t := range r.Tests {
			switch {
			case must[t.Test] && t.Result != pass:
				r.Lost = append(r.Lost, t.Test)
			case !must[t.Test] && t.Result == pass:
				r.Gained = append(r.Gained, t.Test)
				must[t.Test] = true
			}
		}
		if o.updateLedger && len(r.Gained) > 0 {
			if err := writeLedger(o, must); err != nil {
				return 0, err
			}
		}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(o.report), 0o755); err != nil {
		return 0, err
	}
	if err := replaceFile(o.report, append(data, '\n')); err != nil {
		return 0, err
	}
	if o.readme && !stopped {
		if err := updateReadme(o, r); err != nil {
			return 0, err
		}
	}

	fmt.Println()
	for _, t := range r.Tiers {
		fmt.Printf("tier %d: %d of %d passed, %d failed, %d skipped in %.0fs (%s)\n", t.Tier, t.Passed, t.Run, t.Failed, t.Skipped, t.Seconds, t.Name)
	}
	fmt.Printf("report: %s\nlogs:   %s\n", o.report, filepath.Join(o.e2e, "out", "logs"))
	for _, name := range r.Lost {
		fmt.Printf("LOST: %s passed before and must pass\n", name)
	}
	if len(r.Gained) > 0 {
		if o.updateLedger {
			fmt.Printf("%d newly passing tests are in the ledger now\n", len(r.Gained))
		} else {
			fmt.Printf("%d tests pass that the ledger does not have yet (--update-ledger adds them)\n", len(r.Gained))
		}
	}
	fmt.Printf("%s: %d passed, %d failed, %d skipped in %.0fs\n", o.against, r.Passed, r.Failed, r.Skipped, r.Seconds)
	switch {
	case stopped:
		fmt.Println("stopped before the end")
		return 130, nil
	case len(r.Lost) > 0, r.Failed > 0 && (o.strict || o.against == "etcd"):
		return 1, nil
	}
	return 0, nil
}

const readmeBegin, readmeEnd = "<!-- tiers:begin (written by scripts/etcd-e2e-compat.sh --readme) -->", "<!-- tiers:end -->"

func updateReadme(o options, r *report) error {
	path := filepath.Join(o.root, "README.md")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(data), readmeBegin)
	old, tail, ok2 := strings.Cut(rest, readmeEnd)
	if !ok || !ok2 {
		return errors.New("README.md has no tiers block")
	}
	// Tiers that were not run this time keep the numbers of their last run.
	rows := map[string]string{}
	for _, line := range strings.Split(old, "\n") {
		if f := strings.Split(line, "|"); len(f) > 3 {
			rows[strings.TrimSpace(f[1])] = line
		}
	}
	for _, t := range r.Tiers {
		if t.Run == t.Tests {
			rows[fmt.Sprint(t.Tier)] = fmt.Sprintf("| %d | %s | %d | %d | %d | %d | %.0f | %s |", t.Tier, t.Name, t.Tests, t.Passed, t.Failed, t.Skipped, t.Seconds, shortCommit(r.Commit))
		}
	}
	text := readmeBegin + "\n| Tier | What | Tests | Passed | Failed | Skipped | Seconds | Commit |\n|---|---|---|---|---|---|---|---|\n"
	for _, t := range tiers {
		row := rows[fmt.Sprint(t.Number)]
		if row == "" {
			row = fmt.Sprintf("| %d | %s | %d | – | – | – | – | not run yet |", t.Number, t.Name, t.Count)
		}
		text += row + "\n"
	}
	return replaceFile(path, []byte(head+text+readmeEnd+tail))
}

func shortCommit(id string) string {
	hash, rest, dirty := strings.Cut(id, "+")
	if len(hash) > 10 {
		hash = hash[:10]
	}
	if dirty {
		return hash + "+" + rest
	}
	return hash
}
