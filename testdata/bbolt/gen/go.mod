module bboltgen

go 1.22

require go.etcd.io/bbolt v1.3.11

require golang.org/x/sys v0.18.0 // indirect
