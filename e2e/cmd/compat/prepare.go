//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// suite is the work tree as etcd's tests expect it, and the test binary that runs in it.
type suite struct {
	tree, testBinary, server string
	versions                 map[string]string
}

func (s *suite) cwd() string { return filepath.Join(s.tree, "tests", "e2e") }

func (s *suite) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.testBinary, args...)
	cmd.Dir = s.cwd()
	return cmd
}

// A product is one binary built from etcd's modules: where it lies in a checkout and as a package.
type product struct {
	name, dir, pkg string
	test           bool
}

var products = []product{
	{"etcd", "server", "go.etcd.io/etcd/server/v3", false},
	{"etcdctl", "etcdctl", "go.etcd.io/etcd/etcdctl/v3", false},
	{"etcdutl", "etcdutl", "go.etcd.io/etcd/etcdutl/v3", false},
	{"benchmark", ".", "go.etcd.io/etcd/v3/tools/benchmark", false},
	{"e2e.test", "tests", "go.etcd.io/etcd/tests/v3/e2e", true},
}

func prepare(o options) (*suite, error) {
	for _, tool := range []string{"curl", "awk"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("the suite needs %s (Debian: apt-get install %s)", tool, tool)
		}
	}
	if err := buildTools(o); err != nil {
		return nil, err
	}
	if o.buildOnly {
		return nil, nil
	}
	server, err := serverBinary(o)
	if err != nil {
		return nil, err
	}
	s := &suite{tree: filepath.Join(o.e2e, "out", "tree"), server: server}
	s.testBinary = filepath.Join(o.e2e, "bin", "e2e.test")
	if err := layOut(o, s); err != nil {
		return nil, err
	}
	adoptOrphans()
	defer endLeftovers()
	s.versions = map[string]string{"go": goVersion(), "suite": etcdVersion}
	for name, argv := range map[string][]string{
		"server":  {server, "--version"},
		"etcdctl": {filepath.Join(o.e2e, "bin", "etcdctl"), "version"},
		"curl":    {"curl", "--version"},
		"cargo":   {"cargo", "--version"},
	} {
		if out, err := firstWords(argv); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			s.versions[name] = strings.TrimSpace(first)
		}
	}
	return s, nil
}

// firstWords is what a command prints; one that does not end is given up after ten seconds.
func firstWords(argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd.Output()
}

// buildTools builds etcd, its tools and its suite into e2e/bin unless what is there was built from
// the same versions by the same Go.
func buildTools(o options) error {
	bin := filepath.Join(o.e2e, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	stamp, err := stampOf(o)
	if err != nil {
		return err
	}
	stampFile := filepath.Join(bin, "stamp")
	if old, err := os.ReadFile(stampFile); err == nil && string(old) == stamp && o.etcdSrc == "" && allThere(bin) {
		return nil
	}
	os.Remove(stampFile)
	for i, p := range products {
		fmt.Printf("building %s (%d/%d)\n", p.name, i+1, len(products))
		verb := []string{"build"}
		if p.test {
			verb = []string{"test", "-c"}
		}
		args := append(verb, "-o", filepath.Join(bin, p.name))
		cmd := exec.Command("go", append(args, p.pkg)...)
		cmd.Dir = o.e2e
		if o.etcdSrc != "" {
			cmd.Dir = filepath.Join(o.etcdSrc, p.dir)
		}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("building %s: %w", p.name, err)
		}
	}
	return os.WriteFile(stampFile, []byte(stamp), 0o644)
}

func allThere(bin string) bool {
	for _, p := range products {
		if _, err := os.Stat(filepath.Join(bin, p.name)); err != nil {
			return false
		}
	}
	return true
}

func stampOf(o options) (string, error) {
	if o.etcdSrc != "" {
		src, err := os.ReadFile(filepath.Join(o.etcdSrc, "api", "version", "version.go"))
		if err != nil {
			return "", fmt.Errorf("--etcd-src is not an etcd 3.5 checkout: %w", err)
		}
		found := regexp.MustCompile(`Version\s*=\s*"([0-9][^"]*)"`).FindSubmatch(src)
		if found == nil || string(found[1]) != etcdVersion {
			return "", fmt.Errorf("--etcd-src must be at v%s", etcdVersion)
		}
		return "checkout " + o.etcdSrc, nil
	}
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(o.e2e, name))
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	return fmt.Sprintf("etcd %s, go %s, %x\n", etcdVersion, goVersion(), sum.Sum(nil)), nil
}

func serverBinary(o options) (string, error) {
	if o.binary != "" {
		return o.binary, executable(o.binary)
	}
	if o.against == "etcd" {
		return filepath.Join(o.e2e, "bin", "etcd"), nil
	}
	fmt.Println("building rusd (cargo build --release --locked)")
	cmd := exec.Command("cargo", "build", "--release", "--locked")
	cmd.Dir = o.root
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building rusd: %w", err)
	}
	target := os.Getenv("CARGO_TARGET_DIR")
	if target == "" {
		target = filepath.Join(o.root, "target")
	}
	binary := filepath.Join(target, "release", "rusd")
	return binary, executable(binary)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err == nil && (info.IsDir() || info.Mode()&0o111 == 0) {
		err = errors.New("not an executable file")
	}
	if err != nil {
		return fmt.Errorf("server binary %s: %w", path, err)
	}
	return nil
}

// moduleDir is where a module's files lie: in the module cache, or in the checkout.
func moduleDir(o options, module, inCheckout string) (string, error) {
	if o.etcdSrc != "" {
		return filepath.Join(o.etcdSrc, inCheckout), nil
	}
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = o.e2e
	out, err := cmd.Output()
	dir := string(bytes.TrimSpace(out))
	if err == nil && dir == "" {
		err = errors.New("not in the module cache")
	}
	if err != nil {
		return "", fmt.Errorf("locating %s: %w", module, err)
	}
	return dir, nil
}

// layOut makes the work tree afresh, so that nothing of an earlier run (default.etcd, etcd1.etcd)
// is left in the suite's working directory.
func layOut(o options, s *suite) error {
	if err := os.RemoveAll(s.tree); err != nil {
		return err
	}
	bin := filepath.Join(s.tree, "bin")
	for _, dir := range []string{bin, s.cwd()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	links := map[string]string{
		"etcd":    s.server,
		"etcdctl": filepath.Join(o.e2e, "bin", "etcdctl"),
		"etcdutl": filepath.Join(o.e2e, "bin", "etcdutl"),
	}
	if o.lastRelease != "" {
		links["etcd-last-release"] = o.lastRelease
	}
	for name, target := range links {
		if err := executable(target); err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	tests, err := moduleDir(o, "go.etcd.io/etcd/tests/v3", "tests")
	if err != nil {
		return err
	}
	if err := copyTree(filepath.Join(tests, "fixtures"), filepath.Join(s.tree, "tests", "fixtures")); err != nil {
		return err
	}
	root, err := moduleDir(o, "go.etcd.io/etcd/v3", ".")
	if err != nil {
		return err
	}
	sample, err := os.ReadFile(filepath.Join(root, "etcd.conf.yml.sample"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.tree, "etcd.conf.yml.sample"), sample, 0o644)
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o644)
	})
}
