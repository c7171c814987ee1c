package cli_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdctl carries out a command line of etcd's own tool, as far as
// docs/operations.md uses it, so that its commands are tried as they stand.
func etcdctl(endpoint, user, password string, args ...string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Username: user, Password: password, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	prefix := false
	var words []string
	for _, a := range args {
		switch {
		case a == "--prefix=true":
			prefix = true
		case strings.HasPrefix(a, "-"):
			return fmt.Errorf("etcdctl: unknown flag %s", a)
		default:
			words = append(words, a)
		}
	}
	var end string
	last := words[len(words)-1]
	if prefix {
		end = clientv3.GetPrefixRangeEnd(last)
	}
	switch command := strings.Join(words[:min(2, len(words))], " "); {
	case words[0] == "del":
		_, err = c.Delete(ctx, last, clientv3.WithRange(end))
	case command == "role add":
		_, err = c.RoleAdd(ctx, words[2])
	case command == "role grant-permission":
		kind, ok := map[string]clientv3.PermissionType{
			"read": clientv3.PermissionType(clientv3.PermRead), "readwrite": clientv3.PermissionType(clientv3.PermReadWrite),
		}[words[3]]
		if !ok || len(words) != 5 {
			return fmt.Errorf("etcdctl role grant-permission: want ROLE read|readwrite KEY")
		}
		_, err = c.RoleGrantPermission(ctx, words[2], words[4], end, kind)
	case command == "user add":
		name, password, ok := strings.Cut(words[2], ":")
		if !ok {
			return fmt.Errorf("etcdctl user add: want NAME:PASSWORD")
		}
		_, err = c.UserAdd(ctx, name, password)
	case command == "user grant-role":
		_, err = c.UserGrantRole(ctx, words[2], words[3])
	case command == "auth enable":
		_, err = c.AuthEnable(ctx)
	default:
		err = fmt.Errorf("etcdctl %s: not known here", command)
	}
	return err
}
