module rusd/judge

go 1.22

require (
	github.com/anishathalye/porcupine v1.0.2
	github.com/gogo/protobuf v1.3.2
	go.etcd.io/bbolt v1.3.11
	go.etcd.io/etcd/api/v3 v3.5.17
	go.etcd.io/etcd/raft/v3 v3.5.17
	google.golang.org/grpc v1.59.0
)

require (
	github.com/golang/protobuf v1.5.4 // indirect
	golang.org/x/net v0.23.0 // indirect
	golang.org/x/sys v0.18.0 // indirect
	golang.org/x/text v0.14.0 // indirect
	google.golang.org/genproto v0.0.0-20230822172742-b8732ec3820d // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20230822172742-b8732ec3820d // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20230822172742-b8732ec3820d // indirect
	google.golang.org/protobuf v1.33.0 // indirect
)
