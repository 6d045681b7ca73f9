package main

import (
	"io"
	"net/http"
	"time"
)

// httpGet returns the body, or "" when there is none.
func httpGet(url string) string {
	c := http.Client{Timeout: 2 * time.Second}
	r, err := c.Get(url)
	if err != nil {
		return ""
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	return string(b)
}
