# Two stages: the first has pip and leaves a virtual environment behind, the last has only what runs.
# Builds with Docker (BuildKit or not) and with podman.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
# Where pip finds its packages, when not at its default. They stay in this stage.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY app/requirements.txt /tmp/requirements.txt
RUN python -m venv --without-pip /opt/venv \
 && python -m pip --python /opt/venv/bin/python install --disable-pip-version-check --root-user-action ignore \
      --no-cache-dir --no-compile --only-binary :all: --require-hashes -r /tmp/requirements.txt
COPY app/habit_notifier.py /app/habit_notifier.py
# The root file system is read-only at run time, so the bytecode is made here. It is not compared with the sources'
# time stamps, which do not survive every registry and builder.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib /app

FROM ${BASE_IMAGE}
# A name for the uid: some libraries ask for it. Any other uid works too. Then away with what nothing here runs: pip, the
# lists of apt, and every program's right to become another user.
RUN useradd --uid 1000 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin notifier \
 && python -m pip uninstall --quiet --yes --root-user-action ignore pip \
 && find / -xdev -name 'pip-*.whl' -delete \
 && rm -rf /var/lib/apt/lists/* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s '{}' +
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# The system's certificate authorities are not for this program: it trusts certifi's or REQUESTS_CA_BUNDLE for Twilio and
# DB_SSL_CA for MySQL. PyMySQL would read them at every connection, which takes longer than the connection.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SSL_CERT_FILE=/dev/null \
    SSL_CERT_DIR=/dev/null
WORKDIR /app
USER 1000:1000
# The exec form: the program is process 1 and gets SIGTERM itself. As a module, since Python compiles a script anew at
# every start.
ENTRYPOINT ["python", "-m", "habit_notifier"]
# `make build` adds version and revision.
LABEL org.opencontainers.image.title="habit-notifier" \
      org.opencontainers.image.description="Once a day, one text to each user who fell behind on their habits" \
      org.opencontainers.image.licenses="MIT"
