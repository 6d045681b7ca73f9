package main

import (
	"context"

	"github.com/gogo/protobuf/proto"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// The messages of the lock and election services, written down here so that the judge needs no
// part of etcd's server: names and numbers are the wire's.
type (
	lockRequest struct {
		Name  []byte `protobuf:"bytes,1,opt,name=name,proto3"`
		Lease int64  `protobuf:"varint,2,opt,name=lease,proto3"`
	}
	lockResponse struct {
		Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
		Key    []byte             `protobuf:"bytes,2,opt,name=key,proto3"`
	}
	unlockRequest struct {
		Key []byte `protobuf:"bytes,1,opt,name=key,proto3"`
	}
	// headerResponse answers Unlock, Proclaim and Resign.
	headerResponse struct {
		Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
	}
	campaignRequest struct {
		Name  []byte `protobuf:"bytes,1,opt,name=name,proto3"`
		Lease int64  `protobuf:"varint,2,opt,name=lease,proto3"`
		Value []byte `protobuf:"bytes,3,opt,name=value,proto3"`
	}
	leaderMsg struct {
		Name  []byte `protobuf:"bytes,1,opt,name=name,proto3"`
		Key   []byte `protobuf:"bytes,2,opt,name=key,proto3"`
		Rev   int64  `protobuf:"varint,3,opt,name=rev,proto3"`
		Lease int64  `protobuf:"varint,4,opt,name=lease,proto3"`
	}
	campaignResponse struct {
		Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
		Leader *leaderMsg         `protobuf:"bytes,2,opt,name=leader,proto3"`
	}
	// leaderRequest asks Leader and Observe.
	leaderRequest struct {
		Name []byte `protobuf:"bytes,1,opt,name=name,proto3"`
	}
	leaderResponse struct {
		Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
		Kv     *mvccpb.KeyValue   `protobuf:"bytes,2,opt,name=kv,proto3"`
	}
	proclaimRequest struct {
		Leader *leaderMsg `protobuf:"bytes,1,opt,name=leader,proto3"`
		Value  []byte     `protobuf:"bytes,2,opt,name=value,proto3"`
	}
	resignRequest struct {
		Leader *leaderMsg `protobuf:"bytes,1,opt,name=leader,proto3"`
	}
)

func (m *lockRequest) Reset()              { *m = lockRequest{} }
func (m *lockRequest) String() string      { return proto.CompactTextString(m) }
func (*lockRequest) ProtoMessage()         {}
func (m *lockResponse) Reset()             { *m = lockResponse{} }
func (m *lockResponse) String() string     { return proto.CompactTextString(m) }
func (*lockResponse) ProtoMessage()        {}
func (m *unlockRequest) Reset()            { *m = unlockRequest{} }
func (m *unlockRequest) String() string    { return proto.CompactTextString(m) }
func (*unlockRequest) ProtoMessage()       {}
func (m *headerResponse) Reset()           { *m = headerResponse{} }
func (m *headerResponse) String() string   { return proto.CompactTextString(m) }
func (*headerResponse) ProtoMessage()      {}
func (m *campaignRequest) Reset()          { *m = campaignRequest{} }
func (m *campaignRequest) String() string  { return proto.CompactTextString(m) }
func (*campaignRequest) ProtoMessage()     {}
func (m *leaderMsg) Reset()                { *m = leaderMsg{} }
func (m *leaderMsg) String() string        { return proto.CompactTextString(m) }
func (*leaderMsg) ProtoMessage()           {}
func (m *campaignResponse) Reset()         { *m = campaignResponse{} }
func (m *campaignResponse) String() string { return proto.CompactTextString(m) }
func (*campaignResponse) ProtoMessage()    {}
func (m *leaderRequest) Reset()            { *m = leaderRequest{} }
func (m *leaderRequest) String() string    { return proto.CompactTextString(m) }
func (*leaderRequest) ProtoMessage()       {}
func (m *leaderResponse) Reset()           { *m = leaderResponse{} }
func (m *leaderResponse) String() string   { return proto.CompactTextString(m) }
func (*leaderResponse) ProtoMessage()      {}
func (m *proclaimRequest) Reset()          { *m = proclaimRequest{} }
func (m *proclaimRequest) String() string  { return proto.CompactTextString(m) }
func (*proclaimRequest) ProtoMessage()     {}
func (m *resignRequest) Reset()            { *m = resignRequest{} }
func (m *resignRequest) String() string    { return proto.CompactTextString(m) }
func (*resignRequest) ProtoMessage()       {}

func (m *lockResponse) GetHeader() *pb.ResponseHeader     { return m.Header }
func (m *headerResponse) GetHeader() *pb.ResponseHeader   { return m.Header }
func (m *campaignResponse) GetHeader() *pb.ResponseHeader { return m.Header }
func (m *leaderResponse) GetHeader() *pb.ResponseHeader   { return m.Header }

const (
	methodLock     = "/v3lockpb.Lock/Lock"
	methodUnlock   = "/v3lockpb.Lock/Unlock"
	methodCampaign = "/v3electionpb.Election/Campaign"
	methodProclaim = "/v3electionpb.Election/Proclaim"
	methodLeader   = "/v3electionpb.Election/Leader"
	methodObserve  = "/v3electionpb.Election/Observe"
	methodResign   = "/v3electionpb.Election/Resign"
)

// invoke makes a unary call whose answer is of type R.
func invoke[R any, P interface {
	*R
	proto.Message
}](ctx context.Context, c *grpc.ClientConn, method string, q proto.Message) (proto.Message, error) {
	var r R
	if err := c.Invoke(ctx, method, q, P(&r)); err != nil {
		return nil, err
	}
	return P(&r), nil
}

// observeOnce gives the first answer of an Observe stream and ends it.
func observeOnce(ctx context.Context, c *grpc.ClientConn, q *leaderRequest) (proto.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, methodObserve)
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(q); err != nil {
		return nil, err
	}
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	var r leaderResponse
	if err := s.RecvMsg(&r); err != nil {
		return nil, err
	}
	return &r, nil
}
