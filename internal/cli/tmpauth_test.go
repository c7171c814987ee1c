package cli_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTmpAuth(t *testing.T) {
	ep := startEtcd(t)
	b, _ := os.ReadFile("../../docs/operations.md")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "etcdctl" && (f[1] == "user" || f[1] == "role" || f[1] == "auth") {
			if err := etcdctl(ep, "", "", f[1:]...); err != nil {
				t.Fatal(err)
			}
		}
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{ep}, Username: "controller", Password: "CHANGE-ME"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	for _, k := range []string{"groups/a", "fleet", "prepare/a", "rollouts/x", "intents/x", "condemned/x", "served/x", "audit/x", "ready/a/b", "election/leader"} {
		_, err := c.Put(ctx, "/routerd/"+k, "x")
		_, err2 := c.Txn(ctx).If(clientv3.Compare(clientv3.Value("/routerd/"+k), "=", "x").WithPrefix()).Then(clientv3.OpDelete("/routerd/"+k)).Commit()
		fmt.Println(k, err, err2)
		_, err2 = c.Txn(ctx).If(clientv3.Compare(clientv3.Value("/routerd/"+k), "=", "x")).Commit()
		fmt.Println(k, err2)
		_, err2 = c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision("/routerd/"+k), "<", 3).WithPrefix()).Commit()
		fmt.Println(k, err2)
		_, err2 = c.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("/routerd/"+k, "y")},nil)).Commit()
		fmt.Println(k, err2)
		_, err2 = c.Txn(ctx).Then(clientv3.OpPut("/routerd/"+k, "")).Commit()
		fmt.Println(k, err2)
	}
}
