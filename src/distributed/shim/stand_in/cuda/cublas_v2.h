// Stand-in for cuBLAS, cuSPARSE and cuSOLVER where only CUDA's small wheels are installed.
//
// ATen/cuda/CUDAContext.h names these types in declarations that cuda.cpp never uses; where the real headers are
// installed, they are found first.
#pragma once

typedef struct cublasContext* cublasHandle_t;
typedef enum { CUBLAS_STATUS_SUCCESS = 0 } cublasStatus_t;
typedef struct cublasLtContext* cublasLtHandle_t;
typedef struct cusparseContext* cusparseHandle_t;
typedef enum { CUSPARSE_STATUS_SUCCESS = 0 } cusparseStatus_t;
typedef struct cusolverDnContext* cusolverDnHandle_t;
typedef enum { CUSOLVER_STATUS_SUCCESS = 0 } cusolverStatus_t;
