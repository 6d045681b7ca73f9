package main

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rusd/judge/harness"
)

func login(user string) func(*tableSide) (string, error) {
	return func(s *tableSide) (string, error) { return s.login(user) }
}

func saved(name string) func(*tableSide) (string, error) {
	return func(s *tableSide) (string, error) { return s.saved[name], nil }
}

func fixed(token string) func(*tableSide) (string, error) {
	return func(*tableSide) (string, error) { return token, nil }
}

// tableCallers lists who calls in a mode.
func tableCallers(o *tableOpts, sides []*tableSide) ([]caller, error) {
	switch o.mode {
	case "simple":
		return []caller{
			{name: "root", token: login("root")},
			{name: "adm", token: login("adm")},
			{name: "alice", token: login("alice")},
			{name: "alice-hdr", token: login("alice"), field: "authorization"},
			{name: "bob", token: login("bob")},
			{name: "carol", token: login("carol")},
			{name: "dave", token: login("dave")},
			{name: "anonymous"},
			{name: "empty", token: fixed("")},
			{name: "garbage", token: fixed("garbage")},
			{name: "foreign", token: fixed("abcdefghijklmnop.12")},
			{name: "expired", token: saved("expired")},
			{name: "deleted", token: saved("deleted")},
		}, nil
	case "jwt":
		claims := func(change func(map[string]any)) func(*tableSide) (string, error) {
			return func(s *tableSide) (string, error) {
				t, err := s.login("alice")
				if err != nil {
					return "", err
				}
				c, err := claimsOf(t)
				if err != nil {
					return "", err
				}
				change(c)
				return s.machine.sign("RS256", c)
			}
		}
		other, err := newJWTMaker("")
		if err != nil {
			return nil, err
		}
		as := func(sign func(s *tableSide, c map[string]any) (string, error)) func(*tableSide) (string, error) {
			return func(s *tableSide) (string, error) {
				t, err := s.login("root")
				if err != nil {
					return "", err
				}
				c, err := claimsOf(t)
				if err != nil {
					return "", err
				}
				return sign(s, c)
			}
		}
		return []caller{
			{name: "root", token: login("root")},
			{name: "alice", token: login("alice")},
			{name: "carol", token: login("carol")},
			{name: "anonymous"},
			{name: "garbage", token: fixed("a.b.c")},
			{name: "resigned", token: claims(func(map[string]any) {})},
			{name: "oldrev", token: claims(func(c map[string]any) { c["revision"] = 1 })},
			{name: "newrev", token: claims(func(c map[string]any) { c["revision"] = 1_000_000 })},
			{name: "norev", token: claims(func(c map[string]any) { delete(c, "revision") })},
			{name: "noname", token: claims(func(c map[string]any) { delete(c, "username") })},
			{name: "stranger", token: claims(func(c map[string]any) { c["username"] = "stranger" })},
			{name: "expired", token: claims(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Minute).Unix() })},
			{name: "noexp", token: claims(func(c map[string]any) { delete(c, "exp") })},
			{name: "unsigned", token: as(func(s *tableSide, c map[string]any) (string, error) { return s.machine.sign("none", c) })},
			{name: "hmac", token: as(func(s *tableSide, c map[string]any) (string, error) { return s.machine.sign("HS256", c) })},
			{name: "otherkey", token: as(func(_ *tableSide, c map[string]any) (string, error) { return other.sign("RS256", c) })},
		}, nil
	}
	// Certificates: one connection per common name, and tokens beside certificates.
	for _, s := range sides {
		for _, cn := range []string{"root", "alice", "carol", "nopw", "stranger", ""} {
			t, err := harness.ClientCert(s.node.TLS, cn)
			if err != nil {
				return nil, err
			}
			s.byName[cn+" "] = harness.Dial(s.node.Addr, t)
		}
	}
	return []caller{
		{name: "root", cert: "root "},
		{name: "alice", cert: "alice "},
		{name: "carol", cert: "carol "},
		{name: "nopw", cert: "nopw "},
		{name: "stranger", cert: "stranger "},
		{name: "nocn", cert: " "},
		{name: "root-carol", cert: "carol ", token: login("root")}, // a token counts before the name
		{name: "bad-root", cert: "root ", token: fixed("garbage")},
	}, nil
}

// jwtMaker has the keys of a server's JWT tokens, to make tokens that it should refuse.
type jwtMaker struct {
	key      *rsa.PrivateKey
	pub, prv string
	pubPEM   []byte
}

func newJWTMaker(dir string) (*jwtMaker, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	m := &jwtMaker{key: key}
	if dir == "" {
		return m, nil
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	m.pub, m.prv = filepath.Join(dir, "jwt.pub"), filepath.Join(dir, "jwt.key")
	m.pubPEM = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	prv := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(m.pub, m.pubPEM, 0o600); err != nil {
		return nil, err
	}
	return m, os.WriteFile(m.prv, prv, 0o600)
}

func (m *jwtMaker) flag() string {
	return fmt.Sprintf("jwt,pub-key=%s,priv-key=%s,sign-method=RS256,ttl=5m", m.pub, m.prv)
}

func (m *jwtMaker) sign(alg string, claims map[string]any) (string, error) {
	head, err := json.Marshal(map[string]string{"alg": alg, "typ": "JWT"})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	e := base64.RawURLEncoding
	text := e.EncodeToString(head) + "." + e.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	var sig []byte
	switch alg {
	case "RS256":
		if sig, err = rsa.SignPKCS1v15(rand.Reader, m.key, crypto.SHA256, sum[:]); err != nil {
			return "", err
		}
	case "HS256": // the public key as the secret: a well-known trick
		h := hmac.New(sha256.New, m.pubPEM)
		h.Write([]byte(text))
		sig = h.Sum(nil)
	}
	return text + "." + e.EncodeToString(sig), nil
}

func claimsOf(token string) (map[string]any, error) {
	var parts [3]string
	n := 0
	for _, c := range token {
		if c == '.' {
			n++
			continue
		}
		if n > 2 {
			break
		}
		parts[n] += string(c)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, err
	}
	claims := map[string]any{}
	return claims, json.Unmarshal(b, &claims)
}
