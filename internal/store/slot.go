package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"routerd.dev/internal/rollout"
)

// ErrFloor: so many instances of the group are out of traffic already that
// another must not go. It is as before.
var ErrFloor = errors.New("as many instances are out of traffic as may be")

// stepTries is how often StepOut begins anew when others of the group wrote
// meanwhile; then its caller asks again later.
const stepTries = 5

// StepOut says that the instance, which cannot serve what is committed under
// nonce, takes no traffic until it can. The fleet's settings say how many of a
// group may be out at once, those counted whom a controller told to go; of
// several that step out in one moment no more get through. It fails with
// ErrFloor when that many are out, with ErrStale when the group is too busy to
// tell, and with ErrLostMembership.
func (m *Membership) StepOut(ctx context.Context, nonce rollout.Nonce) error {
	what := fmt.Sprintf("step out of traffic as %s", m.who.Instance)
	r := rollout.Ready{Instance: m.who.Instance, Group: m.who.Group, Nonce: nonce, Evicted: true}
	dir := m.s.key(dirReady + m.who.Group + "/")
	var err error
	for range stepTries {
		var at int64
		if at, err = m.mayGo(ctx, what, dir); err != nil {
			return err
		}
		err = m.write(ctx, what, r, unmovedDir(dir, at))
		if !errors.Is(err, ErrStale) {
			return err
		}
	}
	return err
}

// mayGo tells at which revision there was room for one more to be out.
func (m *Membership) mayGo(ctx context.Context, what, dir string) (at int64, err error) {
	resp, err := m.s.txn(ctx, what, dir, nil, []clientv3.Op{
		clientv3.OpGet(dir, clientv3.WithPrefix()), clientv3.OpGet(m.s.key(keyFleet)),
	}, nil)
	if err != nil {
		return 0, err
	}
	n, out := 1, 0
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		if string(kv.Key) == m.readyKey() {
			continue
		}
		n++
		if strings.HasPrefix(string(kv.Value), readyEvicted) {
			out++
		}
	}
	var f rollout.Fleet
	if kv := onlyKV(resp, 1); kv == nil || json.Unmarshal(kv.Value, &f) != nil {
		f = rollout.Fleet{} // the default holds
	}
	if most := rollout.MostUnready(f.Settings.MaxUnready, n); out >= most {
		return 0, fmt.Errorf("%s: %w: %d of %d, at most %d", what, ErrFloor, out, n, most)
	}
	return resp.Header.Revision, nil
}
