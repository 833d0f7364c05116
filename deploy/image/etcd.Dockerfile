# etcd, for tests where its own image cannot be pulled. The context has the programs etcd and etcdctl.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY etcd etcdctl /usr/local/bin/
EXPOSE 2379 2380
CMD ["etcd"]
