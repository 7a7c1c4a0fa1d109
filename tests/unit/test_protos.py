"""The public surface holds what the data path relies on."""

from google.protobuf import descriptor_pool

import sandpool.v1.execution_pb2
import sandpool.v1.file_pb2
import sandpool.v1.session_pb2


def test_every_data_plane_request_names_its_session() -> None:
    pool = descriptor_pool.Default()
    assert sandpool.v1.execution_pb2 and sandpool.v1.file_pb2 and sandpool.v1.session_pb2
    wrapped = {"InteractRequest", "WriteFileRequest"}  # streams: the first message holds it
    for service in ("sandpool.v1.ExecutionService", "sandpool.v1.FileService"):
        for method in pool.FindServiceByName(service).methods:
            message = method.input_type
            if message.name not in wrapped:
                assert message.fields_by_name["session"].message_type.full_name == "sandpool.v1.SessionRef", (
                    message.name
                )


def test_an_execution_ends_in_exactly_one_way() -> None:
    ended = sandpool.v1.execution_pb2.ExecutionEnded.DESCRIPTOR
    assert {field.name for field in ended.oneofs_by_name["outcome"].fields} == {"exit_code", "signal", "killed"}
