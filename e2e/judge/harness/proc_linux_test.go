package harness

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// A server must outlive the thread of the goroutine that asked for it: here those threads end at once
// (but for the main thread, which Go never ends, so there are several).
func TestServerOutlivesItsStartersThread(t *testing.T) {
	var nodes []*Node
	for i := 0; i < 4; i++ {
		n := &Node{Name: "sleep", Bin: "/bin/sleep", Args: []string{"60"}, Log: filepath.Join(t.TempDir(), "log")}
		started := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			err := n.Start()
			if err != nil {
				err = fmt.Errorf("start %d: %w", i, err)
			}
			started <- err
		}()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		defer n.Kill()
		nodes = append(nodes, n)
	}
	time.Sleep(300 * time.Millisecond)
	for i, n := range nodes {
		if !n.Alive() {
			t.Errorf("server %d ended when its starter's thread did", i)
		}
	}
}
